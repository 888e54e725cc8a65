// SPDX-License-Identifier: Apache-2.0
// One communicator as the issuing thread sees it. Only that thread calls NCCL for it; its user's
// events are posted to the user's loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "transfer/cuda_stopwatch.h"
#include "transfer/nccl_comms.h"

namespace penstock::transfer {

// How events reach a user that may be gone. Any thread.
class NcclUser : public std::enable_shared_from_this<NcclUser> {
 public:
  NcclUser(Loop& loop, NcclComms::Events& events) : loop_(&loop), events_(&events) {}
  // On the user's loop: no event comes afterwards, and the loop is not touched.
  void Leave();
  void Tell(std::function<void(NcclComms::Events&)> event);

 private:
  std::mutex mutex_;  // Guards the next two.
  Loop* loop_;
  NcclComms::Events* events_;
};

class NcclComm {
 public:
  NcclComm(std::shared_ptr<NcclUser> user, std::optional<NcclId> id)
      : user_(std::move(user)), id_(id) {}
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  NcclUser& user() { return *user_; }
  void Wait(MonoTime deadline) { deadline_ = deadline; }  // For a place.
  MonoTime deadline() const { return deadline_; }

  // Begins to open. Each call that fails says how it is over; then comes Abort.
  absl::Status Begin(CudaDevice& device, const NcclComms::Options& options,
                     std::shared_ptr<NcclRing> ring, MonoTime now);
  void Move(bool send, std::byte* data, std::size_t bytes);
  // Asks how it goes, and does what can be done next.
  absl::Status Poll(MonoTime now);
  bool opened() const { return open_; }
  // Whether Poll has anything to ask.
  bool busy() const;
  // Open, with nothing under way, since...; and whether it was asked to yield since then.
  bool idle() const { return open_ && !busy(); }
  MonoTime used() const { return used_; }
  bool asked_to_yield = false;

  // On a thread that may hang.
  void Abort();

 private:
  struct Slot {
    bool send = false;
    std::byte* data = nullptr;
    std::size_t bytes = 0;
  };
  absl::Status Error(int error, const char* what) const;
  absl::Status PollOpening(MonoTime now);
  absl::Status Launch(const Slot& slot, MonoTime now);
  absl::Status Launched(MonoTime now);

  const std::shared_ptr<NcclUser> user_;  // Shared with the Comm of the loop.
  std::optional<NcclId> id_;
  CudaDevice* device_ = nullptr;
  const NcclApi* nccl_ = nullptr;
  NcclComms::Options options_;
  std::shared_ptr<NcclRing> ring_;
  NcclCommHandle handle_ = nullptr;
  std::unique_ptr<CudaStream> stream_;
  void* registration_ = nullptr;
  int rank_ = 0;
  bool open_ = false;
  MonoTime deadline_{};  // Of waiting, of opening, and of what is being launched.
  MonoTime used_{};
  std::deque<Slot> asked_;
  std::optional<CudaStopwatch> launching_;  // Asked of NCCL, but perhaps not yet on the stream.
  std::deque<CudaStopwatch> moving_;
  MonoTime progress_{};  // When the one before the first that moves had moved.
};

}  // namespace penstock::transfer
