// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_comms.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda_kernels.h"
#include "transfer/nccl_comm.h"

namespace penstock::transfer {
namespace {

// How often the thread asks while there is something to ask for.
constexpr Duration kPoll = std::chrono::microseconds(50);
constexpr Duration kPollOpening = std::chrono::microseconds(500);
constexpr Duration kIdle = std::chrono::milliseconds(20);  // While something has a deadline only.

class Issuer final : public NcclComms {
 public:
  Issuer(CudaDevice& device, const Options& options) : device_(device), options_(options) {
    thread_ = std::jthread([this](const std::stop_token& stop) { Run(stop); });
  }
  ~Issuer() override {
    thread_.request_stop();
    Wake();
    thread_.join();
    for (std::unique_ptr<Aborting>& aborting : aborting_) {
      if (!aborting->returned) (void)aborting.release();  // As the header says.
    }
  }

  std::unique_ptr<Comm> Open(Loop& loop, Events& events, std::optional<NcclId> id) override;
  absl::Status health() const override {
    const std::lock_guard lock(mutex_);
    return health_;
  }
  void SetUnhealthy(const absl::Status& status) override {
    const std::lock_guard lock(mutex_);
    if (health_.ok()) health_ = status;
  }
  std::string release() const override {
    return absl::StrCat(NcclVersionText(device_.plugin().nccl()->version), ", slots of ",
                        options_.slot_bytes, " bytes");
  }
  const Options& options() const override { return options_; }
  CudaDevice& device() const override { return device_; }
  Load load() const override {
    const std::lock_guard lock(mutex_);
    return load_;
  }

  // ---- Of the loops' threads.

  struct Command {
    enum class What : std::uint8_t { kOpen, kMove, kEnd } what{};
    std::shared_ptr<NcclComm> comm;
    bool send = false;
    std::byte* data = nullptr;
    std::size_t bytes = 0;
  };
  void Push(Command command) {
    {
      const std::lock_guard lock(mutex_);
      commands_.push_back(std::move(command));
    }
    changed_.notify_one();
  }

 private:
  struct Aborting {
    std::shared_ptr<NcclComm> comm;
    MonoTime deadline;
    std::atomic<bool> returned = false;
    std::atomic<bool> late = false;
    std::jthread thread;
  };
  struct Making {
    absl::StatusOr<std::unique_ptr<NcclRing>> ring;
    std::atomic<bool> done = false;
    std::jthread thread;
  };
  // The rings that nobody uses. Shared with those who give them back.
  struct Rings {
    std::mutex mutex;
    std::vector<std::unique_ptr<NcclRing>> free;
  };

  void Wake() {
    const std::lock_guard lock(mutex_);
    changed_.notify_one();
  }

  void Run(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      for (Command& command : NextCommands(stop)) Do(command);
      PollAll();
      FinishAborts();
      BeginWaiting();
      Report();
    }
    for (const auto& comm : std::exchange(comms_, {})) Abort(comm);
    waiting_.clear();
    making_.reset();
    while (std::ranges::any_of(aborting_, [](const auto& a) { return !a->late; })) {
      FinishAborts();
      std::unique_lock lock(mutex_);
      if (!aborting_.empty()) changed_.wait_for(lock, kIdle);
    }
  }

  std::vector<Command> NextCommands(const std::stop_token& stop) {
    Duration pause = std::chrono::hours(1);
    if (!waiting_.empty() || !aborting_.empty()) pause = kIdle;
    for (const auto& comm : comms_) {
      if (comm->busy()) pause = std::min(pause, comm->opened() ? kPoll : kPollOpening);
    }
    std::unique_lock lock(mutex_);
    if (commands_.empty() && !stop.stop_requested()) changed_.wait_for(lock, pause);
    return std::exchange(commands_, {});
  }

  void Do(Command& command) {
    const auto found = std::ranges::find(comms_, command.comm);
    switch (command.what) {
      case Command::What::kOpen:
        command.comm->Wait(SteadyClock().Now() + options_.open_max);
        waiting_.push_back(std::move(command.comm));
        return;
      case Command::What::kMove:
        if (found != comms_.end()) command.comm->Move(command.send, command.data, command.bytes);
        return;
      case Command::What::kEnd:
        std::erase(waiting_, command.comm);
        if (found == comms_.end()) return;
        comms_.erase(found);
        return Abort(command.comm);
    }
  }

  void PollAll() {
    const MonoTime now = SteadyClock().Now();
    for (std::size_t i = 0; i < comms_.size();) {
      const absl::Status status = comms_[i]->Poll(now);
      if (status.ok()) {
        ++i;
        continue;
      }
      const std::shared_ptr<NcclComm> comm = comms_[i];
      comms_.erase(comms_.begin() + static_cast<std::ptrdiff_t>(i));
      Break(comm, status);
    }
  }

  void Break(const std::shared_ptr<NcclComm>& comm, const absl::Status& status) {
    if (absl::IsInternal(status)) SetUnhealthy(status);
    Abort(comm);
    comm->user().Tell([status](Events& events) { events.OnBroken(status); });
  }

  void Abort(const std::shared_ptr<NcclComm>& comm) {
    aborting_.push_back(std::make_unique<Aborting>());
    Aborting* const aborting = aborting_.back().get();
    aborting->comm = comm;
    aborting->deadline = SteadyClock().Now() + options_.abort_max;
    aborting->thread = std::jthread([this, aborting] {
      aborting->comm->Abort();
      aborting->returned = true;
      if (!aborting->late) Wake();
    });
  }

  void FinishAborts() {
    const MonoTime now = SteadyClock().Now();
    for (const auto& aborting : aborting_) {
      if (aborting->returned || aborting->late || now < aborting->deadline) continue;
      aborting->late = true;
      SetUnhealthy(absl::InternalError(absl::StrCat(
          "nccl: an abort has not returned after ",
          std::chrono::duration_cast<std::chrono::milliseconds>(options_.abort_max).count(),
          " ms; the process has to start again")));
    }
    std::erase_if(aborting_, [](const auto& aborting) { return aborting->returned.load(); });
  }

  // Those that wait for a place, in order.
  void BeginWaiting() {
    const MonoTime now = SteadyClock().Now();
    absl::Status made = TakeMadeRing();
    while (!waiting_.empty()) {
      const std::shared_ptr<NcclComm> comm = waiting_.front();
      absl::Status status = health();
      if (status.ok()) status = std::exchange(made, absl::OkStatus());
      const bool full = comms_.size() + aborting_.size() >= options_.comms_max;
      const bool ring = HasRing();
      if (status.ok() && (full || !ring) && now < comm->deadline()) {
        return full ? AskToYield() : MakeRing();
      }
      waiting_.pop_front();
      if (status.ok() && (full || !ring)) {
        status = absl::ResourceExhaustedError(
            absl::StrCat("nccl: all ", options_.comms_max, " communicators are in use"));
      }
      if (status.ok()) status = comm->Begin(device_, options_, TakeRing(), now);
      if (status.ok()) {
        comms_.push_back(comm);
      } else {
        Break(comm, status);
      }
    }
  }

  bool HasRing() const {
    const std::lock_guard lock(rings_->mutex);
    return !rings_->free.empty();
  }

  std::shared_ptr<NcclRing> TakeRing() {
    const std::lock_guard lock(rings_->mutex);
    NcclRing* const ring = rings_->free.back().release();
    rings_->free.pop_back();
    return {ring, [rings = rings_](NcclRing* returned) {
              const std::lock_guard again(rings->mutex);
              rings->free.emplace_back(returned);
            }};
  }

  // Unless one may come back: some copy holds it whose communicator is gone. On a thread of its
  // own: CUDA may let who allocates wait for what runs on the GPU, and that, this thread has to
  // end.
  void MakeRing() {
    if (making_ != nullptr || rings_made_ >= options_.comms_max) return;
    making_ = std::make_unique<Making>();
    making_->thread = std::jthread([this, making = making_.get()] {
      making->ring = NcclRing::Make(device_, options_.slots, options_.slot_bytes);
      making->done = true;
      Wake();
    });
  }

  absl::Status TakeMadeRing() {
    if (making_ == nullptr || !making_->done) return absl::OkStatus();
    const std::unique_ptr<Making> made = std::move(making_);
    RETURN_IF_ERROR(made->ring.status());
    ++rings_made_;
    const std::lock_guard lock(rings_->mutex);
    rings_->free.push_back(*std::move(made->ring));
    return absl::OkStatus();
  }

  void AskToYield() {
    NcclComm* oldest = nullptr;
    for (const auto& comm : comms_) {
      if (!comm->idle() || comm->asked_to_yield) continue;
      if (oldest == nullptr || comm->used() < oldest->used()) oldest = comm.get();
    }
    if (oldest == nullptr || !aborting_.empty()) return;
    oldest->asked_to_yield = true;
    oldest->user().Tell([](Events& events) { events.OnYield(); });
  }

  void Report() {
    const std::lock_guard lock(mutex_);
    load_ = {.comms = comms_.size() + aborting_.size(),
             .aborting = aborting_.size(),
             .waiting = waiting_.size(),
             .rings = rings_made_};
  }

  CudaDevice& device_;
  const Options options_;
  std::condition_variable changed_;
  // Not Abseil's, into which the thread sanitizer cannot see. Guards the next three.
  mutable std::mutex mutex_;
  std::vector<Command> commands_;
  absl::Status health_;
  Load load_;
  // The issuing thread's.
  const std::shared_ptr<Rings> rings_ = std::make_shared<Rings>();
  std::size_t rings_made_ = 0;
  std::unique_ptr<Making> making_;  // Null: none is being made.
  std::deque<std::shared_ptr<NcclComm>> waiting_;
  std::vector<std::shared_ptr<NcclComm>> comms_;  // Opening and open.
  std::vector<std::unique_ptr<Aborting>> aborting_;
  std::jthread thread_;
};

// As the loop has it: shared with the issuing thread, which ends it.
class CommOfLoop final : public NcclComms::Comm {
 public:
  CommOfLoop(Issuer& issuer, std::shared_ptr<NcclUser> user, std::shared_ptr<NcclComm> comm)
      : issuer_(issuer), user_(std::move(user)), comm_(std::move(comm)) {}
  ~CommOfLoop() override {
    user_->Leave();
    issuer_.Push({.what = Issuer::Command::What::kEnd, .comm = comm_});
  }
  void Move(bool send, std::byte* data, std::size_t bytes) override {
    issuer_.Push({.what = Issuer::Command::What::kMove,
                  .comm = comm_,
                  .send = send,
                  .data = data,
                  .bytes = bytes});
  }

 private:
  Issuer& issuer_;
  const std::shared_ptr<NcclUser> user_;
  const std::shared_ptr<NcclComm> comm_;
};

std::unique_ptr<NcclComms::Comm> Issuer::Open(Loop& loop, Events& events,
                                              std::optional<NcclId> id) {
  auto user = std::make_shared<NcclUser>(loop, events);
  auto comm = std::make_shared<NcclComm>(user, id);
  Push({.what = Command::What::kOpen, .comm = comm});
  return std::make_unique<CommOfLoop>(*this, std::move(user), std::move(comm));
}

}  // namespace

absl::StatusOr<std::unique_ptr<NcclComms>> NcclComms::Make(CudaDevice& device,
                                                           const Options& options) {
  RETURN_IF_ERROR(FindNccl(device.plugin()).status());
  Options chosen = options;
  if (chosen.copy_units == nullptr) {
    CHECK(device.plugin().kernels != nullptr);
    chosen.copy_units = device.plugin().kernels->copy_units;
  }
  CHECK(options.comms_max > 0 && options.slots > 0 && options.slot_bytes > 0);
  return std::make_unique<Issuer>(device, chosen);
}

}  // namespace penstock::transfer
