// SPDX-License-Identifier: Apache-2.0
#include "transfer/gpu_sums.h"

#include <gtest/gtest.h>

#include <cstring>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "device/cuda_standin.h"
#include "kernels/crc32c.h"
#include "transfer/nccl_pair_testing.h"

namespace penstock::transfer {
namespace {

constexpr std::size_t kBytes = std::size_t{2} << 20;

class GpuSumsTest : public testing::Test {
 protected:
  GpuSumsTest() {
    world_.On([&] {
      sums_ = GpuSums::Make(world_.loop(), *world_.gpu(0).device, CopyUnitsLater).value();
    });
  }
  ~GpuSumsTest() override {
    world_.On([&] { sums_.reset(); });
  }

  struct Asked {
    std::vector<std::uint64_t> offsets;
    std::vector<ByteRun> runs;
    std::vector<std::uint32_t> want;
    std::optional<absl::StatusOr<std::vector<std::uint32_t>>> got;
  };
  // Units of `runs` runs of up to `run_bytes` each, anywhere.
  Asked MakeAsked(std::size_t units, std::size_t runs, std::uint32_t run_bytes) {
    Asked asked;
    std::uint32_t end = 0;
    for (std::size_t r = 0; r < runs; ++r) {
      const std::uint32_t from = end + static_cast<std::uint32_t>(random_() % 64);
      asked.runs.push_back({from, 0, 1 + static_cast<std::uint32_t>(random_() % run_bytes)});
      end = from + asked.runs.back().bytes;
    }
    for (std::size_t u = 0; u < units; ++u) {
      asked.offsets.push_back(random_() % (kBytes - end));
      std::uint32_t& crc = asked.want.emplace_back(0);
      for (const ByteRun& run : asked.runs) {
        crc = kernels::Crc32c(crc, bytes_.data() + asked.offsets.back() + run.from, run.bytes);
      }
    }
    return asked;
  }
  // On the loop.
  void Ask(Asked& asked, std::shared_ptr<const Event> written = nullptr) {
    sums_->Compute(memory_->data(), asked.offsets, asked.runs, std::move(written),
                   [this, &asked](auto crcs) {
                     asked.got = std::move(crcs);
                     order_.push_back(&asked);
                   });
  }

  std::mt19937 random_{7};
  NcclWorld world_;
  const std::vector<std::byte> bytes_ = RandomBytes(kBytes, 3);
  const std::unique_ptr<DeviceMemory> memory_ = world_.OnDevice(0, bytes_);
  std::unique_ptr<GpuSums> sums_;
  std::vector<const Asked*> order_;
};

// More runs than one launch takes, runs longer than one block's part, and nothing at all.
TEST_F(GpuSumsTest, AreThoseOfTheHostInTheOrderOfTheCalls) {
  std::vector<Asked> all;
  for (const auto& [units, runs, run_bytes] : {std::tuple{1u, 1u, 1u},
                                               {300u, 40u, 200u},
                                               {3u, 2u, 300000u},
                                               {0u, 1u, 10u},
                                               {7u, 3u, 9u}}) {
    all.push_back(MakeAsked(units, runs, run_bytes));
  }
  world_.On([&] {
    for (Asked& asked : all) Ask(asked);
    EXPECT_TRUE(order_.empty()) << "told from inside";
  });
  ASSERT_TRUE(world_.Until([&] { return order_.size() == all.size(); }));
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(order_[i], &all[i]);
    ASSERT_TRUE(all[i].got->ok()) << all[i].got->status();
    EXPECT_EQ(**all[i].got, all[i].want);
  }
}

TEST_F(GpuSumsTest, WaitForWhatIsBeingWritten) {
  Asked asked = MakeAsked(1, 1, 1000);
  std::promise<void> gate;
  CudaStream writer(NcclTestPlugin(), 0);
  const ByteRun run = asked.runs[0];
  cuda_standin::Enqueue(writer.handle(), [&] {
    gate.get_future().wait();
    const cuda_standin::Work work;
    std::memset(memory_->data() + asked.offsets[0] + run.from, 5, run.bytes);
  });
  const std::shared_ptr<const Event> written = writer.Record();
  world_.On([&] { Ask(asked, written); });
  for (int turn = 0; turn < 50; ++turn) {
    world_.On([&] { EXPECT_FALSE(asked.got.has_value()); });
  }
  gate.set_value();
  ASSERT_TRUE(world_.Until([&] { return asked.got.has_value(); }));
  const std::vector<std::byte> fives(run.bytes, std::byte{5});
  EXPECT_EQ(**asked.got, std::vector{kernels::Crc32c(0, fives.data(), fives.size())});
}

TEST_F(GpuSumsTest, WhoGoesIsNotTold) {
  Asked asked = MakeAsked(50, 100, 100);
  world_.On([&] {
    Ask(asked);
    sums_.reset();
  });
  world_.On([] {});
  EXPECT_FALSE(asked.got.has_value());
}

TEST_F(GpuSumsTest, AGpuThatFailsIsToldToAll) {
  Asked first = MakeAsked(5, 2, 1000), second = MakeAsked(5, 2, 1000);
  cuda_standin::Change({.synchronizes = 0});
  world_.On([&] {
    Ask(first);
    Ask(second);
  });
  EXPECT_TRUE(world_.Until([&] { return order_.size() == 2; }));
  cuda_standin::Change({});
  EXPECT_TRUE(absl::IsInternal(first.got->status())) << first.got->status();
  EXPECT_TRUE(absl::IsInternal(second.got->status())) << second.got->status();
}

}  // namespace
}  // namespace penstock::transfer
