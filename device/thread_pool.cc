// SPDX-License-Identifier: Apache-2.0
#include "device/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <system_error>

#include "base/check.h"
#include "base/status.h"

namespace penstock {
namespace {

// About 20 to 50 microseconds of pauses: longer than the serial parts of a decode step, shorter
// than a time slice.
constexpr int kSpins = 1000;

void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  // Pinning is an optimization: a container that forbids this CPU still runs.
  (void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ThreadPool>> ThreadPool::Make(const Options& options) {
  if (options.threads < 1 || options.threads > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads must be from 1 to 1024, got ", options.threads));
  }
  if (!options.cpus.empty() && options.cpus.size() != static_cast<std::size_t>(options.threads)) {
    return absl::InvalidArgumentError(absl::StrCat("cpus must name one CPU for each of ",
                                                   options.threads, " threads, got ",
                                                   options.cpus.size()));
  }
  for (const int cpu : options.cpus) {
    if (cpu < 0 || cpu >= CPU_SETSIZE) {
      return absl::InvalidArgumentError(
          absl::StrCat("cpu must be from 0 to ", CPU_SETSIZE - 1, ", got ", cpu));
    }
  }
  std::unique_ptr<ThreadPool> pool(new ThreadPool(options.threads));
  for (int worker = 1; worker < options.threads; ++worker) {
    const int cpu = options.cpus.empty() ? -1 : options.cpus[static_cast<std::size_t>(worker)];
    try {
      pool->workers_.emplace_back([p = pool.get(), worker, cpu] { p->WorkerLoop(worker, cpu); });
    } catch (const std::system_error& error) {  // The pool's destructor ends those that started.
      return absl::ResourceExhaustedError(absl::StrCat("cannot start thread ", worker + 1, " of ",
                                                       options.threads, ": ", error.what()));
    }
  }
  return pool;
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
}

void ThreadPool::Run(absl::FunctionRef<void(int)> work) {
  CHECK(work_ == nullptr);  // Else another Run is under way.
  work_ = &work;
  running_.store(threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  work(0);
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      _mm_pause();
      continue;
    }
    const int running = running_.load(std::memory_order_acquire);
    if (running != 0) running_.wait(running, std::memory_order_acquire);
  }
  work_ = nullptr;
}

void ThreadPool::WorkerLoop(int worker, int cpu) {
  if (cpu >= 0) PinTo(cpu);
  std::uint32_t seen = 0;
  while (true) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpins) {
        _mm_pause();
      } else {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
    ++seen;
    if (stop_) return;
    (*work_)(worker);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

Range SplitRange(std::int64_t items, std::int64_t grain, int worker, int threads) {
  const std::int64_t grains = (items + grain - 1) / grain;
  const std::int64_t begin = grains * worker / threads * grain;
  const std::int64_t end = grains * (worker + 1) / threads * grain;
  return {std::min(begin, items), std::min(end, items)};
}

}  // namespace penstock
