// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu_parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <vector>

namespace penstock::kernels {
namespace {

TEST(CpuWorkersTest, RunsCoverAllItemsOnceAndGetShorter) {
  for (const int threads : {1, 2, 3, 8}) {
    const std::unique_ptr<ThreadPool> pool = *ThreadPool::Make({.threads = threads});
    CpuWorkers workers(*pool);
    for (const std::int64_t items : {0, 1, 2, 3, 7, 96, 1000}) {
      SCOPED_TRACE(testing::Message() << threads << " threads, " << items << " items");
      std::vector<std::atomic<int>> calls(static_cast<std::size_t>(items));
      std::mutex mutex;
      std::vector<std::int64_t> lengths(static_cast<std::size_t>(items));  // By where they begin.
      workers.ForRuns(items, [&](int worker, std::int64_t begin, std::int64_t end) {
        EXPECT_TRUE(worker >= 0 && worker < threads);
        ASSERT_TRUE(0 <= begin && begin < end && end <= items);
        for (std::int64_t i = begin; i < end; ++i) ++calls[static_cast<std::size_t>(i)];
        const std::lock_guard lock(mutex);
        lengths[static_cast<std::size_t>(begin)] = end - begin;
      });
      for (const std::atomic<int>& count : calls) EXPECT_EQ(count, 1);
      std::erase(lengths, 0);
      EXPECT_TRUE(std::is_sorted(lengths.rbegin(), lengths.rend()));
      if (items > threads && threads > 1) {
        EXPECT_EQ(lengths.front(), std::max<std::int64_t>(1, items / (2 * threads)));
        EXPECT_EQ(lengths.back(), 1);
      }
    }
  }
}

}  // namespace
}  // namespace penstock::kernels
