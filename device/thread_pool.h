// SPDX-License-Identifier: Apache-2.0
// Threads that run one function together, many thousand times a second: the fork and join of CPU
// kernels.
//
// The caller is worker 0, so a pool of one has no threads. Between runs the others spin for a short
// while, since the next run usually follows within microseconds, then sleep. One thread at a time
// may call Run; calls must not nest
// (CHECKed).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace penstock {

class ThreadPool {
 public:
  struct Options {
    int threads = 1;  // With the caller.
    // Empty: not pinned. Else one per thread; cpus[0] is for the caller, who pins itself.
    std::vector<int> cpus = {};
  };

  // INVALID_ARGUMENT: threads outside 1..1,024, or cpus of another count. RESOURCE_EXHAUSTED when
  // the system refuses that many threads.
  static absl::StatusOr<std::unique_ptr<ThreadPool>> Make(const Options& options);
  ~ThreadPool();

  int threads() const { return threads_; }

  // Calls work(worker) once for every worker in 0..threads()-1, worker 0 on the caller's thread,
  // and returns when all have returned. What the caller wrote before is visible to the workers,
  // what they wrote is visible after.
  void Run(absl::FunctionRef<void(int worker)> work);

  // Calls item(worker, i) once for every i in [0, items); who is done takes the next, so that
  // uneven items even out. One item, or a pool of one thread, stays on the caller's.
  template <typename F>
  void ForEach(std::int64_t items, F item) {
    if (items <= 1 || threads_ == 1) {
      for (std::int64_t i = 0; i < items; ++i) item(0, i);
      return;
    }
    std::atomic<std::int64_t> next{0};
    Run([&](int worker) {
      for (std::int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < items;
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        item(worker, i);
      }
    });
  }

 private:
  explicit ThreadPool(int threads) : threads_(threads) {}
  void WorkerLoop(int worker, int cpu);

  const int threads_;
  // Counts up by one a run; workers wait for it to move.
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  // Published by generation_, as all that the workers read.
  bool stop_ = false;
  const absl::FunctionRef<void(int)>* work_ = nullptr;
  std::vector<std::jthread> workers_;  // Last: joined before the rest goes.
};

// Splits [0, items) into threads() nearly equal runs, in multiples of `grain` but for the last;
// worker w gets [begin, end), possibly empty.
struct Range {
  std::int64_t begin;
  std::int64_t end;
};
Range SplitRange(std::int64_t items, std::int64_t grain, int worker, int threads);

}  // namespace penstock
