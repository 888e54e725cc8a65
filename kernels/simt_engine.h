// SPDX-License-Identifier: Apache-2.0
// How kernels/simt.h runs a grid: fibers, the meetings of threads, shared memory. For simt*.cc only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/simt.h"
#include "kernels/simt_fiber.h"
#include "kernels/simt_observer.h"

namespace penstock::simt {

inline constexpr unsigned kThreadsMax = 1024;
inline constexpr unsigned kWarpLanes = 32;
inline constexpr std::size_t kSharedFreeBytes = 48 << 10;  // Without cudaFuncSetAttribute.
// Of one block on 8.0; 9.0 and 10.0 have 227 KiB.
inline constexpr std::size_t kSharedMaxBytes = 163 << 10;

struct Copy {
  std::byte* to;
  const std::byte* from;  // Null: zeros.
  bool landed;
};

enum class State : std::uint8_t { kReady, kAtBarrier, kAtWarp, kDone };

struct Fiber {
  Context context;
  State state = State::kDone;
  uint3 index{};
  Site at;  // Where it waits.
  const char* what = nullptr;
  std::vector<Copy> copies;
  std::vector<std::size_t> groups;  // Of each committed group, the count of copies up to its end.
};

inline constexpr std::size_t kSlotBytes = 32;
using Slots = const std::byte (*)[kSlotBytes];  // [lane]

// The lanes of `mask` come together here; they may meet again before all have read what was given,
// but not twice, so two sets of slots are enough.
struct Meeting {
  unsigned mask = 0;
  unsigned arrived = 0;
  unsigned round = 0;
  const char* what = nullptr;
  Site at;
  std::byte slots[2][kWarpLanes][kSlotBytes];
};

struct Warp {
  unsigned live = 0;
  std::vector<std::unique_ptr<Meeting>> meetings;
};

struct SharedBlock {
  const void* tag;  // Null: the launch's dynamic bytes.
  std::byte* p;
  std::size_t bytes;
  std::unique_ptr<std::byte, decltype(&std::free)> owner;
};

// What one OS thread needs to run launches, one at a time.
class Engine {
 public:
  ~Engine();
  // The engine of this OS thread.
  static Engine& Mine();
  void Run(const LaunchShape& shape, void (*body)(const void*), const void* closure);
  void Synchronize();

  const Schedule* schedule = &Schedules()[0];
  cudaError_t error = cudaSuccess;  // As LastError and TakeFailure of simt.h.
  std::string failure;

  // --- Of the thread that runs ---

  [[noreturn]] void FailAt(Site at, const char* message);
  void BarrierArrive(Site at);
  // Waits for the lanes of `mask`; returns what each gave. Without a value, orders memory.
  Slots Meet(unsigned mask, const char* what, const void* value, std::size_t bytes, Site at);
  void* Shared(const void* tag, std::size_t bytes, std::size_t alignment, Site at);
  std::byte* Dynamic() { return dynamic_; }
  void Begin(void* shared, const void* global, bool live, Site at);
  void WaitForEarlier();
  void Commit() { current().groups.push_back(current().copies.size()); }
  void Wait(std::size_t pending);
  unsigned lane() const { return static_cast<unsigned>(running_) % kWarpLanes; }

 private:
  Fiber& current() { return fibers_[static_cast<std::size_t>(running_)]; }
  void SetFailure(const char* thread, Site at, const char* message);
  bool CheckShape(const LaunchShape& shape);
  void RunBlock(std::uint64_t number);
  void MakeReady(unsigned thread) { ready_.push_back(thread); }
  void ReleaseBarrier();
  void WaitAs(State state, const char* what, Site at);
  // Runs the next ready fiber, or the starter when there is none or the launch has failed.
  void Next(Context& from, bool ends);
  void CheckEnd();
  void Land(Copy& copy);
  SharedBlock& AddShared(const void* tag, std::size_t bytes);
  void PoisonShared(SharedBlock& shared);
  static void Entry();
  std::uint64_t Random();

  char* stacks_ = nullptr;
  std::vector<Fiber> fibers_ = std::vector<Fiber>(kThreadsMax);
  Warp warps_[kThreadsMax / kWarpLanes];
  std::vector<unsigned> ready_;  // The last one runs next, or a random one.
  std::vector<SharedBlock> shared_;
  std::byte* dynamic_ = nullptr;
  Context starter_;
  bool starter_known_ = false;
  LaunchShape shape_{};
  void (*body_)(const void*) = nullptr;
  const void* closure_ = nullptr;
  unsigned threads_ = 0;
  unsigned live_ = 0;
  unsigned at_barrier_ = 0;
  Site barrier_;
  int running_ = -1;
  std::uint64_t random_ = 1;
  bool failed_ = false;
  bool waited_ = false;  // Some thread of the launch has called WaitForEarlier.
};

}  // namespace penstock::simt
