// SPDX-License-Identifier: Apache-2.0
#include "gateway/event_queue.h"

#include <utility>

namespace penstock::gateway {
namespace {

// About what it takes in memory, and on the wire.
std::size_t BytesOf(const Event& event) {
  std::size_t bytes = sizeof(EventQueue::Item);
  if (const auto* const delta = std::get_if<Delta>(&event)) {
    bytes += delta->text.size();
    for (const SampledToken& token : delta->tokens) {
      bytes += sizeof(token) + token.piece.size();
      for (const TokenLogprob& top : token.top) bytes += sizeof(top) + top.piece.size();
    }
  } else if (const auto* const started = std::get_if<Started>(&event)) {
    bytes += started->prompt.size() * sizeof(TokenId);
  }
  return bytes;
}

}  // namespace

class EventQueue::PartSink final : public Sink {
 public:
  PartSink(std::shared_ptr<EventQueue> queue, std::size_t part)
      : queue_(std::move(queue)), part_(part) {}

  bool OnEvent(Event event) override { return queue_->Push(part_, std::move(event)); }
  void OnEnd(const absl::Status& status, Duration retry_after) override {
    queue_->PushEnd(part_, {status, retry_after});
  }

 private:
  const std::shared_ptr<EventQueue> queue_;
  const std::size_t part_;
};

EventQueue::EventQueue(Limits limits, std::function<void()> wake)
    : limits_(limits), wake_(std::move(wake)) {}

std::shared_ptr<Sink> EventQueue::MakeSink(std::size_t part) {
  return std::make_shared<PartSink>(shared_from_this(), part);
}

std::vector<EventQueue::Item> EventQueue::Take() {
  const std::lock_guard lock(mutex_);
  bytes_ = 0;
  return std::exchange(items_, {});
}

void EventQueue::Detach() {
  std::vector<Item> dropped;
  std::function<void()> wake;  // What it holds is let go after the lock.
  const std::lock_guard lock(mutex_);
  wake.swap(wake_);
  dropped.swap(items_);
}

bool EventQueue::Push(std::size_t part, Event event) {
  const std::size_t bytes = BytesOf(event);
  const std::lock_guard lock(mutex_);
  if (wake_ == nullptr) return true;  // Cancelled; its end is on the way.
  if (!items_.empty() &&
      (items_.size() >= limits_.events_max || bytes_ + bytes > limits_.bytes_max)) {
    return false;
  }
  bytes_ += bytes;
  Item& item = items_.emplace_back();
  item.part = part;
  item.event = std::move(event);
  if (items_.size() == 1) wake_();
  return true;
}

void EventQueue::PushEnd(std::size_t part, End end) {
  const std::lock_guard lock(mutex_);
  if (wake_ == nullptr) return;
  Item& item = items_.emplace_back();
  item.part = part;
  item.end = std::move(end);
  if (items_.size() == 1) wake_();
}

}  // namespace penstock::gateway
