// SPDX-License-Identifier: Apache-2.0
#include "transfer/inproc_link.h"

#include <deque>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "transfer/life.h"
#include "transfer/puller.h"

namespace penstock::transfer {
namespace {

class InprocLink final : public Link, private SegmentTable::Watcher {
 public:
  InprocLink(Loop& loop, SegmentTable& theirs)
      : loop_(loop),
        theirs_(theirs),
        puller_(loop,
                [this](ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) {
                  events_->OnRead(id, status, crcs);
                }) {
    theirs_.AddWatcher(*this);
  }
  ~InprocLink() override {
    theirs_.RemoveWatcher(*this);
    if (other_ != nullptr) other_->PeerGone();
  }

  static void Join(InprocLink& a, InprocLink& b) {
    a.other_ = &b;
    b.other_ = &a;
  }

  void Start(LinkEvents& events) override {
    CHECK(events_ == nullptr);
    events_ = &events;
    Schedule();
  }
  Kind kind() const override { return Kind::kInproc; }
  std::string Describe() const override { return "inproc"; }

  absl::Status Send(std::span<const std::byte> message) override {
    CHECK(!message.empty());
    CHECK_LE(message.size(), kMessageBytesMax);
    if (other_ == nullptr) return absl::UnavailableError("the peer is gone");
    return other_->Receive(message);
  }

  void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool) override {
    const SegmentTable::Segment* const found = theirs_.Find(segment);
    if (other_ == nullptr) {
      puller_.AddFailed(id, absl::UnavailableError("the peer is gone"));
    } else if (found == nullptr) {
      puller_.AddFailed(id, absl::NotFoundError(
                                absl::StrCat("no segment ", static_cast<std::uint32_t>(segment))));
    } else {
      puller_.Add(id, segment, found->bytes, units);
    }
  }
  void Cancel(ReadId id) override { puller_.Cancel(id); }
  bool maps() const override { return true; }
  // The peer's own memory: who reads it after the peer has gone keeps it there otherwise.
  MappedMemory Mapped(SegmentId segment) const override {
    const SegmentTable::Segment* const found = theirs_.Find(segment);
    if (other_ == nullptr || found == nullptr) return {};
    return {.bytes = found->bytes, .owner = std::make_shared<char>()};
  }

 private:
  void OnWithdraw(SegmentId segment) override { puller_.DropSegment(segment); }

  absl::Status Receive(std::span<const std::byte> message) {
    if (waiting_bytes_ + message.size() > kQueueBytesMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat(waiting_bytes_, " bytes of messages wait, at most ", kQueueBytesMax));
    }
    waiting_bytes_ += message.size();
    waiting_.emplace_back(message.begin(), message.end());
    Schedule();
    return absl::OkStatus();
  }

  void PeerGone() {
    other_ = nullptr;
    Schedule();
  }

  void Schedule() {
    if (scheduled_ || events_ == nullptr) return;
    scheduled_ = true;
    loop_.Post(life_.Guard([this] { Deliver(); }));
  }

  // The messages first: they were sent before the peer went.
  void Deliver() {
    scheduled_ = false;
    const Life::Watch life = life_.watch();
    for (std::size_t left = waiting_.size(); left > 0; --left) {
      const std::vector<std::byte> message = std::move(waiting_.front());
      waiting_.pop_front();
      waiting_bytes_ -= message.size();
      events_->OnMessage(message);
      if (life.over()) return;
    }
    if (!waiting_.empty()) return Schedule();
    if (other_ != nullptr || closed_) return;
    closed_ = true;
    const absl::Status status = absl::UnavailableError("the peer is gone");
    if (puller_.FailAll(status)) events_->OnClosed(status);
  }

  Loop& loop_;
  SegmentTable& theirs_;
  InprocLink* other_ = nullptr;  // Null once it is gone.
  LinkEvents* events_ = nullptr;
  std::deque<std::vector<std::byte>> waiting_;  // To be delivered here.
  std::size_t waiting_bytes_ = 0;
  bool scheduled_ = false;
  bool closed_ = false;
  Puller puller_;
  Life life_;
};

}  // namespace

std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> MakeInprocLinks(
    Loop& loop, SegmentTable& first_segments, SegmentTable& second_segments) {
  auto first = std::make_unique<InprocLink>(loop, second_segments);
  auto second = std::make_unique<InprocLink>(loop, first_segments);
  InprocLink::Join(*first, *second);
  return {std::move(first), std::move(second)};
}

}  // namespace penstock::transfer
