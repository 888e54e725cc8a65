// SPDX-License-Identifier: Apache-2.0
// The GPUs that compute one model together, when one of them fails. Another one may hear of it
// first: NCCL ends an exchange with an error of its own, a copy from the lost GPU's memory or a wait
// for its event fails, or it just never comes. None of these says whose fault it is, so nobody who
// hears one speaks for itself: here all GPUs are asked, until one gives CUDA's error or the bound is
// over, and OnGpuFailed is told of that one, whoever was first to hear.
//
//   own error, own failure          "GPU cuda:1 (...) was lost while computing: ..."
//   another one's error             the same, of that other one
//   several give one                the same, and "; so was GPU cuda:2 (...): ..." of each more
//   none does, one does not answer  "GPU cuda:1 (...) was lost: no call for it has returned for ..."
//   an exchange's alone             "GPU cuda:0 (...) and GPU cuda:1 (...) cannot go on together, and
//                                   none says that it was lost: nccl: ..."
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "base/time.h"
#include "device/cuda_device.h"
#include "device/gpu_failure.h"

namespace penstock {

// What a GPU that others miss has to say so itself. An error that CUDA knows is there when it is
// asked for; a driver that gives up a GPU takes seconds.
inline constexpr Duration kLostGpuSpeaksWithin = std::chrono::seconds(5);

// Any thread, several at once. The first that comes asks, on threads of its own, since a call for a
// lost GPU may hang; the others wait for it. Both calls return only where `on_failed` does, or is
// null: at most `patience` later, and once every GPU that was asked has answered.
class GpuGroup {
 public:
  // Takes from now on what calls for `gpus` give: no other thread uses them yet, and they outlive
  // this, which is the last to use them.
  GpuGroup(std::span<CudaDevice* const> gpus, OnGpuFailed on_failed,
           Duration patience = kLostGpuSpeaksWithin);
  ~GpuGroup();
  GpuGroup(const GpuGroup&) = delete;
  GpuGroup& operator=(const GpuGroup&) = delete;

  // An exchange between them failed, or one waited too long for another; `why` says what and where.
  void ExchangeFailed(const absl::Status& why);

 private:
  struct Member {
    CudaDevice* gpu = nullptr;
    // The first failure of a call of the program's own, 0: none; and what that did.
    int said = 0;
    std::string doing;
    // What it gives when it is asked.
    bool answered = false;
    int error = 0;
  };
  // CUDA gave `error`, not for want of memory, to a call for member `i`.
  void CallFailed(std::size_t i, std::string_view doing, int error);
  // With `lock` held, which it lets go meanwhile: until on_failed_ was told.
  void Tell(std::unique_lock<std::mutex>& lock);
  std::vector<std::jthread> AskAll();
  void Ask(Member& member);
  // All that can be known is; with mutex_ held, as the next two.
  bool Known() const;
  std::string Text() const;
  std::string TextOf(const std::vector<const Member*>& lost) const;

  const OnGpuFailed on_failed_;
  const Duration patience_;
  // Not Abseil's, into which the thread sanitizer cannot see. Guards all below.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Member> members_;
  absl::Status exchange_;  // The first that failed.
  bool asking_ = false;
  bool over_ = false;  // Enough was asked.
  bool told_ = false;
};

}  // namespace penstock
