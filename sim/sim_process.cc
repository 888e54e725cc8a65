// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_process.h"

#include <set>
#include <vector>

namespace penstock::sim {
namespace {

class ProcessLink final : public transfer::Link, private transfer::LinkEvents {
 public:
  ProcessLink(Process& process, std::unique_ptr<transfer::Link> link)
      : process_(process), link_(std::move(link)) {}

  void Start(transfer::LinkEvents& events) override {
    events_ = &events;
    link_->Start(*this);
  }
  transfer::Kind kind() const override { return link_->kind(); }
  std::string Describe() const override { return link_->Describe(); }
  absl::Status Send(std::span<const std::byte> message) override { return link_->Send(message); }
  void Read(transfer::ReadId id, transfer::SegmentId segment, std::span<const transfer::Unit> units,
            bool checksums) override {
    reads_.insert(id);
    link_->Read(id, segment, units, checksums);
  }
  void Cancel(transfer::ReadId id) override { link_->Cancel(id); }

 private:
  void OnMessage(std::span<const std::byte> message) override {
    process_.Post(
        life_.Guard([this, bytes = std::vector<std::byte>(message.begin(), message.end())] {
          events_->OnMessage(bytes);
        }));
  }
  void OnRead(transfer::ReadId id, const absl::Status& status,
              std::span<const std::uint32_t> crcs) override {
    process_.Post(
        life_.Guard([this, id, status, all = std::vector<std::uint32_t>(crcs.begin(), crcs.end())] {
          if (reads_.erase(id) != 0) events_->OnRead(id, status, all);
        }));
  }
  void OnClosed(const absl::Status& status) override {
    process_.Post(life_.Guard([this, status] { Close(status); }));
  }
  // Reads that were asked for after the link had closed, and before this was told, end here.
  void Close(const absl::Status& status) {
    const transfer::Life::Watch life = life_.watch();
    while (!reads_.empty()) {
      const transfer::ReadId id = *reads_.begin();
      reads_.erase(reads_.begin());
      events_->OnRead(id, absl::UnavailableError(status.message()), {});
      if (life.over()) return;
    }
    events_->OnClosed(status);
  }

  Process& process_;
  transfer::LinkEvents* events_ = nullptr;
  std::set<transfer::ReadId> reads_;  // That have not ended, here.
  transfer::Life life_;
  std::unique_ptr<transfer::Link> link_;
};

}  // namespace

Process::~Process() {
  for (const auto& [own, clocks] : timers_) clock_.CancelTimer(clocks);
}

void Process::Run(TimerId timer, std::function<void()> task) {
  if (stopped_) {
    due_.push_back({timer, std::move(task)});
    return;
  }
  if (timer != TimerId{} && timers_.erase(timer) == 0) return;  // Cancelled since it was due.
  task();
}

void Process::Post(std::function<void()> task) {
  clock_.Post(
      life_.Guard([this, task = std::move(task)]() mutable { Run(TimerId{}, std::move(task)); }));
}

Loop::TimerId Process::At(MonoTime when, std::function<void()> task) {
  const TimerId own{next_timer_++};
  timers_[own] =
      clock_.At(when, [this, own, task = std::move(task)]() mutable { Run(own, std::move(task)); });
  return own;
}

void Process::CancelTimer(TimerId timer) {
  const auto found = timers_.find(timer);
  if (found == timers_.end()) return;
  clock_.CancelTimer(found->second);
  timers_.erase(found);
}

void Process::Continue() {
  stopped_ = false;
  for (Due& due : std::exchange(due_, {})) {
    clock_.Post(life_.Guard(
        [this, due = std::move(due)]() mutable { Run(due.timer, std::move(due.task)); }));
  }
}

std::unique_ptr<transfer::Link> MakeProcessLink(Process& process,
                                                std::unique_ptr<transfer::Link> link) {
  return std::make_unique<ProcessLink>(process, std::move(link));
}

}  // namespace penstock::sim
