// SPDX-License-Identifier: Apache-2.0
#include "device/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>

#include <atomic>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

namespace penstock {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

std::unique_ptr<ThreadPool> Pool(int threads) {
  ThreadPool::Options options;
  options.threads = threads;
  return ThreadPool::Make(options).value();
}

// CPUs that this process may use.
std::vector<int> AllowedCpus() {
  cpu_set_t set;
  std::vector<int> cpus;
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

TEST(ThreadPoolTest, EveryWorkerRunsOnceAndTheCallerIsWorkerZero) {
  // Up to 16: more threads than most machines that run this have cores.
  for (const int threads : {1, 2, 3, 4, 16}) {
    SCOPED_TRACE(threads);
    const std::unique_ptr<ThreadPool> pool = Pool(threads);
    EXPECT_EQ(pool->threads(), threads);
    for (int run = 0; run < 50; ++run) {
      std::vector<int> calls(static_cast<std::size_t>(threads));  // Each written by one worker.
      std::vector<std::thread::id> ids(static_cast<std::size_t>(threads));
      pool->Run([&](int worker) {
        ++calls[static_cast<std::size_t>(worker)];
        ids[static_cast<std::size_t>(worker)] = std::this_thread::get_id();
      });
      ASSERT_EQ(calls, std::vector<int>(static_cast<std::size_t>(threads), 1));
      ASSERT_EQ(ids[0], std::this_thread::get_id());
      for (std::size_t i = 1; i < ids.size(); ++i) ASSERT_NE(ids[i], ids[0]);
    }
  }
}

// Plain (not atomic) data passes in both directions over many runs; the thread sanitizer judges.
TEST(ThreadPoolTest, WritesAreVisibleInBothDirections) {
  const int runs = kSanitized ? 2'000 : 20'000;
  const std::unique_ptr<ThreadPool> pool = Pool(2);
  std::int64_t input = 0;
  std::int64_t results[2] = {0, 0};
  std::int64_t sum = 0;
  for (int run = 0; run < runs; ++run) {
    input = run;
    pool->Run([&](int worker) { results[worker] = input + worker; });
    sum += results[0] + results[1];
  }
  EXPECT_EQ(sum, std::int64_t{runs} * (runs - 1) + runs);
}

TEST(ThreadPoolTest, AWorkerThatSleptWakesUp) {
  // The caller computes for far longer than workers spin, so that they sleep in the kernel when the
  // next run starts; and worker 0 ends first, so that the caller sleeps until the last one ends.
  const std::unique_ptr<ThreadPool> pool = Pool(3);
  for (int run = 0; run < 20; ++run) {
    std::atomic<std::int64_t> sum{0};
    const auto count_slowly = [&](int worker) {
      volatile std::int64_t local = 0;
      for (int i = 0; i < 200'000 * (worker + 1); ++i) local = local + 1;
      sum += local;
    };
    count_slowly(9);
    pool->Run(count_slowly);
    EXPECT_EQ(sum, 200'000 * (10 + 1 + 2 + 3));
  }
}

TEST(ThreadPoolTest, PoolsStartAndEndWithoutARun) {
  for (int i = 0; i < 50; ++i) Pool(4);
}

TEST(ThreadPoolTest, TwoPoolsRunBesideEachOther) {
  std::atomic<int> calls{0};
  {
    std::vector<std::jthread> owners;
    for (int owner = 0; owner < 2; ++owner) {
      owners.emplace_back([&calls] {
        const std::unique_ptr<ThreadPool> pool = Pool(3);
        for (int run = 0; run < 200; ++run) pool->Run([&calls](int) { ++calls; });
      });
    }
  }
  EXPECT_EQ(calls, 2 * 200 * 3);
}

TEST(ThreadPoolTest, PinnedWorkersStayOnTheirCpu) {
  const std::vector<int> allowed = AllowedCpus();
  if (allowed.size() < 2) GTEST_SKIP() << "needs two CPUs, has " << allowed.size();
  ThreadPool::Options options;
  options.threads = 3;  // Two of them on one CPU.
  options.cpus = {allowed[0], allowed[1], allowed[1]};
  const std::unique_ptr<ThreadPool> pool = ThreadPool::Make(options).value();
  for (int run = 0; run < 100; ++run) {
    std::vector<int> ran_on(3, -1);
    pool->Run([&](int worker) { ran_on[static_cast<std::size_t>(worker)] = ::sched_getcpu(); });
    ASSERT_EQ(ran_on[1], allowed[1]);
    ASSERT_EQ(ran_on[2], allowed[1]);
  }
  EXPECT_EQ(AllowedCpus(), allowed);  // The caller pins itself, if it wants to.
}

TEST(ThreadPoolTest, ACpuThatIsNotThereStillRuns) {
  ThreadPool::Options options;
  options.threads = 2;
  options.cpus = {CPU_SETSIZE - 1, CPU_SETSIZE - 1};
  std::atomic<int> calls{0};
  ThreadPool::Make(options).value()->Run([&](int) { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST(ThreadPoolTest, MakeNamesLimitAndValue) {
  struct Case {
    int threads;
    std::vector<int> cpus;
    const char* want;
  };
  for (const Case& c : {
           Case{0, {}, "threads must be from 1 to 1024, got 0"},
           Case{-1, {}, "threads must be from 1 to 1024, got -1"},
           Case{1025, {}, "threads must be from 1 to 1024, got 1025"},
           Case{2, {0}, "cpus must name one CPU for each of 2 threads, got 1"},
           Case{1, {0, 1}, "cpus must name one CPU for each of 1 threads, got 2"},
           Case{2, {0, -1}, "cpu must be from 0 to 1023, got -1"},
           Case{1, {1024}, "cpu must be from 0 to 1023, got 1024"},
       }) {
    ThreadPool::Options options;
    options.threads = c.threads;
    options.cpus = c.cpus;
    const absl::Status status = ThreadPool::Make(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(status.message()), c.want);
  }
}

// Ends the process: 0 when a pool that the system has no room for is an error and a small one
// works.
void MakeWithLittleAddressSpace() {
  const rlimit limit = {std::size_t{1} << 30, std::size_t{1} << 30};
  if (::setrlimit(RLIMIT_AS, &limit) != 0) std::exit(2);
  ThreadPool::Options options;
  options.threads = 1024;  // Of 8 MiB of stack each.
  const absl::Status status = ThreadPool::Make(options).status();
  if (status.code() != absl::StatusCode::kResourceExhausted) std::exit(3);
  std::atomic<int> calls{0};
  Pool(2)->Run([&](int) { ++calls; });
  std::exit(calls == 2 ? 0 : 4);
}

TEST(ThreadPoolTest, ThreadsThatCannotStartAreAnError) {
  if (kSanitized) GTEST_SKIP() << "sanitizers need more address space than the limit leaves";
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(MakeWithLittleAddressSpace(), testing::ExitedWithCode(0), "");
}

TEST(ThreadPoolTest, NestedRunsAreABug) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  for (const int threads : {1, 2}) {
    EXPECT_DEATH(
        {
          const std::unique_ptr<ThreadPool> pool = Pool(threads);
          pool->Run([&](int) { pool->Run([](int) {}); });
        },
        "CHECK failed");
  }
}

TEST(SplitRangeTest, CoversEverythingOnceInGrains) {
  for (const int threads : {1, 2, 3, 7, 64}) {
    for (const std::int64_t grain : {1, 4, 16, 100}) {
      for (const std::int64_t items : {0, 1, 3, 4, 5, 15, 16, 17, 99, 1000, 1001}) {
        SCOPED_TRACE(testing::Message() << items << " items by " << grain << " on " << threads);
        std::int64_t next = 0;
        std::int64_t least = items, most = 0;
        for (int worker = 0; worker < threads; ++worker) {
          const Range range = SplitRange(items, grain, worker, threads);
          ASSERT_EQ(range.begin, next);
          ASSERT_LE(range.begin, range.end);
          if (range.end != items) {
            ASSERT_EQ(range.end % grain, 0);
          }
          next = range.end;
          least = std::min(least, range.end - range.begin);
          most = std::max(most, range.end - range.begin);
        }
        EXPECT_EQ(next, items);
        EXPECT_LE(most - least, 2 * grain);  // One for the division, one for the short last grain.
      }
    }
  }
}

TEST(SplitRangeTest, LargeCountsDoNotOverflow) {
  const std::int64_t items = std::int64_t{1} << 50;
  EXPECT_EQ(SplitRange(items, 1, 1023, 1024).end, items);
  EXPECT_EQ(SplitRange(items, 1, 1023, 1024).begin, items / 1024 * 1023);
}

}  // namespace
}  // namespace penstock
