// SPDX-License-Identifier: Apache-2.0
// Pools whose slabs the host sees in memory of its own: those of a device whose memory is its
// alone, and those on several devices.
#include "engine/host_slabs.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <future>
#include <thread>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
#include "device/device_testing.h"
#include "engine/kv_pool.h"
#include "engine/pipeline_stage.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

KvGroup Shape(std::int32_t window_tokens, std::int32_t cache_layers) {
  return {.window_tokens = window_tokens,
          .cache_layers = cache_layers,
          .kv_heads = 1,
          .k_dim = 8,
          .v_dim = 8,
          .dtype = KvDtype::kF16};
}

// Slabs of 4 KiB and of 8 KiB: blocks of 32 tokens * 32 bytes * cache layers.
KvSpec TwoGroups() { return {.groups = {Shape(0, 4), Shape(64, 7)}, .layers = {}}; }

std::unique_ptr<CpuDevice> OneThread() { return *CpuDevice::Make({.threads = 1, .cpus = {}}); }

std::int64_t HostBytes(KvPool& pool, std::int32_t g) {
  struct stat info;
  EXPECT_EQ(::fstat(pool.memory(g).shared_fd(), &info), 0);
  return info.st_blocks * 512;
}

TEST(HostSlabsTest, TheHostSeesWhatIsShownOfADeviceOfItsOwn) {
  FarDevice device;
  const auto pool = *KvPool::Make(device, TwoGroups(), {.pool_bytes = 10 * 4096, .shared = true});
  ASSERT_TRUE(pool->staged());
  EXPECT_FALSE(pool->host_visible());
  const std::unique_ptr<Stream> work = device.NewStream();
  pool->set_writer(*work);
  const SlabRef first = *pool->Allocate(0), slab = *pool->Allocate(0), other = *pool->Allocate(0);
  std::vector<std::byte> bytes(pool->layout(0).block_bytes(), std::byte{7});
  std::byte* const on_device = pool->pools(0).base[0] + slab.index * pool->slab_bytes(0);
  work->Copy(on_device, bytes.data(), bytes.size());
  EXPECT_NE(pool->Address(0, slab), on_device);
  EXPECT_TRUE(pool->Show(0, slab));
  EXPECT_FALSE(pool->Show(0, slab)) << "somebody has asked for it already";
  // One of its four layers, and then all.
  pool->ToHost(0, {&slab, 1}, 2);
  pool->WaitForCopy(pool->last_copy());
  const auto sevens = [&] {
    return std::count(pool->Address(0, slab), pool->Address(0, slab) + bytes.size(), std::byte{7});
  };
  EXPECT_EQ(sevens(), 1024);
  EXPECT_EQ(pool->Address(0, slab)[2048], std::byte{7});
  pool->ToHost(0, {&slab, 1});
  std::promise<void> copied;
  pool->AfterCopies([&] { copied.set_value(); });
  ASSERT_EQ(copied.get_future().wait_for(std::chrono::minutes(1)), std::future_status::ready);
  EXPECT_EQ(sevens(), 4096);
  EXPECT_EQ(HostBytes(*pool, 0), 4096);
  // The other way, to another one.
  EXPECT_TRUE(pool->Show(0, other));
  std::memset(pool->Address(0, other), 9, 4096);
  pool->ToDevice(0, {&other, 1});
  pool->WaitForCopy(pool->last_copy());
  EXPECT_TRUE(pool->Copied(pool->last_copy()));
  pool->Copy(0, other, first);
  pool->Save(0, first, bytes.data());
  EXPECT_EQ(std::ranges::count(bytes, std::byte{9}), 4096);
  // What nobody wants to see takes no memory.
  pool->Hide(0, slab);
  EXPECT_EQ(sevens(), 4096);
  pool->Hide(0, slab);
  EXPECT_EQ(HostBytes(*pool, 0), 4096);
  pool->Hide(0, other);
  EXPECT_EQ(HostBytes(*pool, 0), 0);
  EXPECT_TRUE(pool->Show(0, slab));
}

TEST(HostSlabsTest, NothingIsStagedWhereTheHostSeesAll) {
  FarDevice far;
  EXPECT_FALSE((*KvPool::Make(far, TwoGroups(), {.pool_bytes = 10 * 4096}))->staged());
  const std::unique_ptr<CpuDevice> device = OneThread();
  const auto pool = *KvPool::Make(*device, TwoGroups(), {.pool_bytes = 10 * 4096, .shared = true});
  ASSERT_FALSE(pool->staged());
  const SlabRef slab = *pool->Allocate(0);
  EXPECT_EQ(pool->Address(0, slab), pool->pools(0).base[0]);
  EXPECT_FALSE(pool->Show(0, slab));
  bool done = false;
  pool->AfterCopies([&] { done = true; });
  EXPECT_TRUE(done);
  EXPECT_EQ(pool->last_copy(), 0u);
  pool->WaitForCopy(0);
  pool->Hide(0, slab);
}

// Of several devices each has some of three layers, and of those some of four heads: two or one, or
// the same one as its neighbour, where a stage has eight shards.
struct Split {
  std::int32_t stages = 1;
  std::int32_t shards = 1;
};
class ShardedPoolTest : public testing::TestWithParam<Split> {
 protected:
  static constexpr std::int32_t kHeads = 4;
  static constexpr std::int32_t kLayers = 3;

  ShardedPoolTest() {
    for (std::int32_t i = 0; i < DevicesCount(); ++i) devices_.push_back(&far_.emplace_back());
    KvGroup group = Shape(0, kLayers);
    group.kv_heads = kHeads;
    const KvOptions options = {.pool_bytes = 10 * kSlabBytes,
                               .block_tokens = 32,
                               .page_tokens = 16,
                               .stages = GetParam().stages,
                               .shared = true};
    pool_ =
        *KvPool::Make(devices_, {.groups = {group}, .layers = {{0, 0}, {0, 1}, {0, 2}}}, options);
  }

  static std::int32_t DevicesCount() { return GetParam().stages * GetParam().shards; }
  // On each device: the pages of every layer and head have a byte of their own.
  void Fill(SlabRef slab, int first) {
    const std::size_t bytes = pool_->layout(0).page_bytes();
    for (std::int32_t device = 0; device < DevicesCount(); ++device) {
      ForEachPage(device,
                  [&](std::int32_t layer, std::int32_t own, std::int32_t head, std::int32_t page) {
                    std::fill_n(PageOn(device, slab, layer, own, page), bytes,
                                ByteOf(first, layer, head, page));
                  });
    }
  }
  // How many pages are not what Fill with `first` makes of them: of a whole slab, and on devices.
  int Wrong(const std::byte* whole, int first, std::int32_t layers = kLayers) const {
    const PageLayout& layout = pool_->layout(0);
    int wrong = 0;
    for (std::int32_t layer = 0; layer < layers; ++layer) {
      for (std::int32_t head = 0; head < kHeads; ++head) {
        for (std::int32_t page = 0; page < 2; ++page) {
          const std::byte* const at = whole + layout.PageOffset(layer, head, page);
          wrong += std::count(at, at + layout.page_bytes(), ByteOf(first, layer, head, page)) !=
                   static_cast<std::ptrdiff_t>(layout.page_bytes());
        }
      }
    }
    return wrong;
  }
  int WrongOnDevices(SlabRef slab, int first) const {
    const auto bytes = static_cast<std::ptrdiff_t>(pool_->layout(0).page_bytes());
    int wrong = 0;
    for (std::int32_t device = 0; device < DevicesCount(); ++device) {
      ForEachPage(device,
                  [&](std::int32_t layer, std::int32_t own, std::int32_t head, std::int32_t page) {
                    const std::byte* const at = PageOn(device, slab, layer, own, page);
                    wrong += std::count(at, at + bytes, ByteOf(first, layer, head, page)) != bytes;
                  });
    }
    return wrong;
  }

  using KvOptions = KvPool::Options;
  // 3 layers x 4 heads x 32 tokens x 32 bytes.
  static constexpr std::size_t kSlabBytes = 12288;
  std::deque<FarDevice> far_;
  std::vector<Device*> devices_;
  std::unique_ptr<KvPool> pool_;

 private:
  static std::byte ByteOf(int first, std::int32_t layer, std::int32_t head, std::int32_t page) {
    return std::byte{static_cast<unsigned char>(first + (layer * kHeads + head) * 2 + page)};
  }
  template <typename Visit>
  void ForEachPage(std::int32_t device, const Visit& visit) const {
    const std::int32_t sharers = std::max(GetParam().shards / kHeads, 1);
    const std::int32_t heads = pool_->layout_on(device, 0).group.kv_heads;
    const std::int32_t shard = device % GetParam().shards;
    const ShardRange layers =
        LayersOf(kLayers, {.index = device / GetParam().shards, .stages = GetParam().stages});
    for (std::int32_t layer = layers.begin; layer < layers.end; ++layer) {
      for (std::int32_t own = 0; own < heads; ++own) {
        for (std::int32_t page = 0; page < 2; ++page) {
          visit(layer, own, shard / sharers * heads + own, page);
        }
      }
    }
  }
  std::byte* PageOn(std::int32_t device, SlabRef slab, std::int32_t layer, std::int32_t own,
                    std::int32_t page) const {
    const std::int32_t there = pool_->cache_layer_on(device, {0, layer});
    return const_cast<std::byte*>(pool_->pools(0, device).At(slab)) +
           pool_->layout_on(device, 0).PageOffset(there, own, page);
  }
};

TEST_P(ShardedPoolTest, TheHostSeesWholeSlabs) {
  ASSERT_TRUE(pool_->staged());
  EXPECT_FALSE(pool_->host_visible());
  EXPECT_EQ(pool_->slab_bytes(0), kSlabBytes);
  EXPECT_EQ(pool_->memory(0).size_bytes(), 10 * kSlabBytes);
  EXPECT_EQ(pool_->layout_on(0, 0).group.kv_heads, std::max(kHeads / GetParam().shards, 1));
  EXPECT_EQ(pool_->stats().bytes_budget, 10 * kSlabBytes);
  const SlabRef slab = *pool_->Allocate(0), other = *pool_->Allocate(0),
                third = *pool_->Allocate(0);
  EXPECT_EQ(pool_->stats().bytes_held, 3 * kSlabBytes);
  Fill(slab, 1);
  EXPECT_TRUE(pool_->Show(0, slab));
  for (std::int32_t layer = 0; layer < kLayers; ++layer) {
    pool_->ToHost(0, {&slab, 1}, layer);
    pool_->WaitForCopy(pool_->last_copy());
    EXPECT_EQ(Wrong(pool_->Address(0, slab), 1, layer + 1), 0);
    EXPECT_EQ(Wrong(pool_->Address(0, slab), 1), 8 * (kLayers - 1 - layer)) << "no others yet";
  }
  // All of it, and back to another slab, of which every device gets its heads.
  Fill(slab, 101);
  pool_->ToHost(0, {&slab, 1});
  std::promise<void> copied;
  pool_->AfterCopies([&] { copied.set_value(); });
  ASSERT_EQ(copied.get_future().wait_for(std::chrono::minutes(1)), std::future_status::ready);
  EXPECT_EQ(Wrong(pool_->Address(0, slab), 101), 0);
  EXPECT_TRUE(pool_->Show(0, other));
  std::memcpy(pool_->Address(0, other), pool_->Address(0, slab), kSlabBytes);
  pool_->ToDevice(0, {&other, 1});
  pool_->WaitForCopy(pool_->last_copy());
  EXPECT_TRUE(pool_->Copied(pool_->last_copy()));
  EXPECT_EQ(WrongOnDevices(other, 101), 0);
  // And without being shown.
  std::vector<std::byte> saved(pool_->layout(0).block_bytes());
  pool_->Copy(0, other, third);
  EXPECT_EQ(WrongOnDevices(third, 101), 0);
  pool_->Save(0, third, saved.data());
  EXPECT_EQ(Wrong(saved.data(), 101), 0);
  std::ranges::transform(saved, saved.begin(), [](std::byte b) {
    return std::byte{static_cast<unsigned char>(int(b) - 50)};
  });
  pool_->Restore(0, saved.data(), slab);
  EXPECT_EQ(WrongOnDevices(slab, 51), 0);
  EXPECT_EQ(WrongOnDevices(other, 101), 0);
  for (const SlabRef shown : {slab, other}) pool_->Hide(0, shown);
  EXPECT_EQ(HostBytes(*pool_, 0), 0);
}

// Two threads that ask for word of the end, beside one that copies: every batch is one everywhere.
TEST_P(ShardedPoolTest, AnyThreadIsToldOfTheEndOfCopies) {
  const SlabRef slab = *pool_->Allocate(0);
  pool_->Show(0, slab);
  constexpr int kTimes = 100;
  std::atomic<int> told = 0;
  std::promise<void> all;
  const auto ask = [&] {
    for (int i = 0; i < kTimes; ++i) {
      pool_->AfterCopies([&] {
        if (++told == 2 * kTimes) all.set_value();
      });
    }
  };
  {
    const std::jthread one(ask), two(ask);
    for (int i = 0; i < kTimes; ++i) {
      pool_->ToHost(0, {&slab, 1});
      pool_->WaitForCopy(pool_->last_copy());
      pool_->ToDevice(0, {&slab, 1});
      pool_->WaitForCopy(pool_->last_copy());
      ASSERT_TRUE(pool_->Copied(pool_->last_copy()));
    }
  }
  ASSERT_EQ(all.get_future().wait_for(std::chrono::minutes(1)), std::future_status::ready);
}

INSTANTIATE_TEST_SUITE_P(Shards, ShardedPoolTest,
                         testing::Values(Split{1, 1}, Split{1, 2}, Split{1, 4}, Split{1, 8},
                                         Split{2, 1}, Split{3, 1}, Split{2, 4}, Split{3, 8}),
                         [](const auto& split) {
                           return absl::StrCat(split.param.stages, "x", split.param.shards);
                         });

// A stage may have no layer of a group, and then no memory for it.
TEST(HostSlabsTest, OfAGroupWithoutLayersADeviceHasNothing) {
  FarDevice far[2];
  Device* const devices[] = {&far[0], &far[1]};
  // Two layers with a window, then one without.
  const KvSpec spec = {.groups = {Shape(64, 2), Shape(0, 1)}, .layers = {{0, 0}, {0, 1}, {1, 0}}};
  const auto pool =
      *KvPool::Make(devices, spec, {.pool_bytes = 10 * 4096, .stages = 2, .shared = true});
  // The first stage has the first layer.
  EXPECT_EQ(pool->layout_on(0, 0).group.cache_layers, 1);
  EXPECT_EQ(pool->layout_on(0, 1).group.cache_layers, 0);
  EXPECT_EQ(pool->layout_on(1, 0).group.cache_layers, 1);
  EXPECT_EQ(pool->layout_on(1, 1).group.cache_layers, 1);
  const SlabRef slab = *pool->Allocate(1), other = *pool->Allocate(1);
  const std::vector<std::byte> bytes(pool->layout(1).block_bytes(), std::byte{7});
  pool->Restore(1, bytes.data(), slab);
  pool->Copy(1, slab, other);
  std::vector<std::byte> saved(bytes.size());
  pool->Save(1, other, saved.data());
  EXPECT_EQ(saved, bytes);
  EXPECT_TRUE(pool->Show(1, other));
  pool->ToHost(1, {&other, 1}, 0);
  pool->WaitForCopy(pool->last_copy());
  EXPECT_EQ(pool->Address(1, other)[0], std::byte{7});
  EXPECT_EQ(pool->Address(1, other)[bytes.size() - 1], std::byte{7});
  // The other group takes its memory.
  pool->Release(1, slab);
  while (pool->Allocate(0).has_value()) {
  }
  EXPECT_EQ(pool->stats().bytes_available, 0u);
  const KvSpec shared = {.groups = {Shape(0, 1)}, .layers = {{0, 0}, {0, 0}}};
  EXPECT_EQ(KvPool::Make(devices, shared, {.pool_bytes = 4096, .stages = 2}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

// Nobody else's business: no host memory stands beside it.
TEST(HostSlabsTest, OfSeveralDevicesNothingIsStagedThatIsNotShared) {
  const std::unique_ptr<CpuDevice> device[] = {OneThread(), OneThread()};
  Device* const devices[] = {device[0].get(), device[1].get()};
  KvGroup group = Shape(0, 4);
  group.kv_heads = 2;
  const KvSpec spec = {.groups = {group}, .layers = {}};
  EXPECT_FALSE((*KvPool::Make(devices, spec, {.pool_bytes = 10 * 8192}))->staged());
  const auto shared = *KvPool::Make(devices, spec, {.pool_bytes = 10 * 8192, .shared = true});
  EXPECT_TRUE(shared->staged()) << "though the host sees both devices' memory";
  EXPECT_GE(shared->memory(0).shared_fd(), 0);
}

}  // namespace
}  // namespace penstock::engine
