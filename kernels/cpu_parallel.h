// SPDX-License-Identifier: Apache-2.0
// How CPU operations use their threads: memory per worker, and the ways to share work out.
// None shows in the bits.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "device/thread_pool.h"

namespace penstock::kernels {

// Memory of one worker, grown to what the largest call needed and never shrunk. Contents do not
// survive a Get.
class Scratch {
 public:
  std::span<std::byte> Get(std::size_t bytes) {
    if (bytes > size_) {
      memory_.reset(static_cast<std::byte*>(::operator new[](bytes, std::align_val_t{64})));
      size_ = bytes;
    }
    return {memory_.get(), size_};
  }
  float* Floats(std::size_t n) { return reinterpret_cast<float*>(Get(n * sizeof(float)).data()); }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
  std::size_t size_ = 0;
};

// The threads of one Ops object with their scratch. One thread at a time.
class CpuWorkers {
 public:
  explicit CpuWorkers(ThreadPool& pool)
      : pool_(pool), scratch_(static_cast<std::size_t>(pool.threads())) {}

  int threads() const { return pool_.threads(); }
  Scratch& scratch(int worker) { return scratch_[static_cast<std::size_t>(worker)]; }

  // Calls row(worker, r) for every row, in equal runs.
  template <typename F>
  void ForRows(std::int32_t rows, F row) {
    // Fewer rows are done sooner by one thread than the others wake up.
    constexpr std::int32_t kParallelRowsMin = 4;
    if (rows < kParallelRowsMin || pool_.threads() == 1) {
      for (std::int32_t r = 0; r < rows; ++r) row(0, r);
      return;
    }
    pool_.Run([&](int worker) {
      const Range range = SplitRange(rows, 1, worker, pool_.threads());
      for (std::int64_t r = range.begin; r < range.end; ++r)
        row(worker, static_cast<std::int32_t>(r));
    });
  }

  // Calls run(worker, begin, end) for runs of neighbours that cover [0, items): long ones first, so
  // that what a thread read ahead of itself is mostly its own; single ones at last, so that all are
  // done together. Each is half of an equal share of what was left.
  template <typename F>
  void ForRuns(std::int64_t items, F run) {
    if (items <= 1 || pool_.threads() == 1) {
      if (items > 0) run(0, std::int64_t{0}, items);
      return;
    }
    std::atomic<std::int64_t> next{0};
    pool_.Run([&](int worker) {
      std::int64_t begin = next.load(std::memory_order_relaxed);
      while (begin < items) {
        const std::int64_t end =
            begin + std::max<std::int64_t>(1, (items - begin) / (2 * pool_.threads()));
        if (!next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        run(worker, begin, end);
        begin = next.load(std::memory_order_relaxed);
      }
    });
  }

  // Uneven items: ThreadPool::ForEach.
  template <typename F>
  void ForItems(std::int64_t items, F item) {
    pool_.ForEach(items, item);
  }

 private:
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;
};

}  // namespace penstock::kernels
