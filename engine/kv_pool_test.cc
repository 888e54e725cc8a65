// SPDX-License-Identifier: Apache-2.0
#include "engine/kv_pool.h"

#include <sys/stat.h>

#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
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

BlockKey Key(std::uint32_t n) {
  BlockKey key;
  std::memcpy(key.chain.bytes.data(), &n, sizeof(n));
  return key;
}

TEST(KvPoolTest, RefusesBudgetsItCannotServe) {
  const std::unique_ptr<CpuDevice> device = OneThread();
  const auto make = [&](std::size_t bytes) {
    return KvPool::Make(*device, TwoGroups(), {.pool_bytes = bytes}).status();
  };
  EXPECT_TRUE(make(12288).ok());
  const absl::Status small = make(12287);
  EXPECT_EQ(small.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(small.message(),
            "pool_bytes must be at least 12288 (one block of every group), got 12287");
  const absl::Status large = make((std::size_t{1} << 36) + 4096);
  EXPECT_EQ(large.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(large.message(),
            "pool_bytes must be at most 68719480831 (2^24 slabs of 4096 bytes), got 68719480832");
  EXPECT_EQ(KvPool::Make(*device, TwoGroups(), {.block_tokens = 24}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(KvPoolTest, OneBudgetServesAllGroupsAndIsNeverExceeded) {
  const std::unique_ptr<CpuDevice> device = OneThread();
  const auto pool = *KvPool::Make(*device, TwoGroups(), {.pool_bytes = 10 * 4096});
  std::vector<SlabRef> small;
  while (const std::optional<SlabRef> slab = pool->Allocate(0)) small.push_back(*slab);
  ASSERT_EQ(small.size(), 10u);
  EXPECT_FALSE(pool->Allocate(1).has_value());
  pool->Release(0, small[3]);
  EXPECT_FALSE(pool->Allocate(1).has_value()) << "one free slab of 4096 bytes is not 8192";
  EXPECT_EQ(pool->stats().bytes_available, 4096u);
  pool->Release(0, small[4]);
  const std::optional<SlabRef> large = pool->Allocate(1);
  ASSERT_TRUE(large.has_value());
  const KvPool::Stats stats = pool->stats();
  EXPECT_EQ(stats.bytes_committed, 10u * 4096);
  EXPECT_EQ(stats.bytes_held, 10u * 4096);
  EXPECT_EQ(stats.groups[0].slabs_held, 8);
  EXPECT_EQ(stats.groups[0].slabs_free, 0) << "their memory went to the other group";
  EXPECT_EQ(stats.groups[1].slabs_held, 1);
  EXPECT_EQ(stats.bytes_padding, 8192u - 7 * 1024);
}

TEST(KvPoolTest, SharedPoolsGiveMemoryBackToo) {
  const std::unique_ptr<CpuDevice> device = OneThread();
  const auto pool = *KvPool::Make(*device, TwoGroups(), {.pool_bytes = 10 * 4096, .shared = true});
  const auto committed = [&] {
    std::int64_t bytes = 0;
    for (const std::int32_t g : {0, 1}) {
      struct stat info;
      EXPECT_EQ(::fstat(pool->memory(g).shared_fd(), &info), 0);
      bytes += info.st_blocks * 512;
    }
    return bytes;
  };
  const auto fill = [&](std::int32_t g) {
    std::vector<SlabRef> slabs;
    while (const std::optional<SlabRef> slab = pool->Allocate(g)) {
      std::memset(pool->Address(g, *slab), 0xAB, pool->slab_bytes(g));
      slabs.push_back(*slab);
    }
    EXPECT_EQ(committed(), 10 * 4096);
    EXPECT_EQ(pool->Address(g, slabs.back()),
              pool->memory(g).data() + slabs.back().index * pool->slab_bytes(g));
    for (const SlabRef slab : slabs) pool->Release(g, slab);
  };
  fill(0);
  fill(1);
  fill(0);
  const auto own = *KvPool::Make(*device, TwoGroups(), {.pool_bytes = 10 * 4096});
  EXPECT_EQ(own->memory(0).shared_fd(), -1);
}

TEST(KvPoolTest, SealedSlabsStayFindableUntilTheirMemoryIsNeeded) {
  const std::unique_ptr<CpuDevice> device = OneThread();
  const auto pool = *KvPool::Make(*device, TwoGroups(), {.pool_bytes = 3 * 4096});
  const SlabRef a = *pool->Allocate(0);
  std::memset(pool->Address(0, a), 0x5a, 4096);
  EXPECT_TRUE(pool->Seal(0, a, {.key = Key(1)}));
  EXPECT_FALSE(pool->Contains(1, Key(1))) << "keys are per group";
  EXPECT_EQ(pool->Find(0, Key(1)), a);
  EXPECT_EQ(pool->refs(0, a), 2);
  const SlabRef twin = *pool->Allocate(0);
  EXPECT_FALSE(pool->Seal(0, twin, {.key = Key(1)}));
  pool->Release(0, twin);
  EXPECT_EQ(pool->stats().groups[0].slabs_free, 1) << "a slab that lost the key is not cached";
  pool->Release(0, a);
  pool->Release(0, a);
  EXPECT_EQ(pool->stats().groups[0].slabs_cached, 1);
  EXPECT_EQ(pool->stats().bytes_available, 3u * 4096);
  EXPECT_EQ(pool->Find(0, Key(1)), a);
  EXPECT_EQ(pool->Address(0, a)[4095], std::byte{0x5a});
  pool->Release(0, a);
  const SlabRef big = *pool->Allocate(1);
  EXPECT_TRUE(pool->Contains(0, Key(1))) << "free memory goes first";
  EXPECT_TRUE(pool->Allocate(0).has_value());
  EXPECT_FALSE(pool->Contains(0, Key(1)));
  EXPECT_EQ(pool->stats().groups[0].slabs_evicted, 1);
  pool->Release(1, big);
}

TEST(KvPoolTest, DropCachedForgetsOnlyWhatNobodyHolds) {
  const std::unique_ptr<CpuDevice> device = OneThread();
  const auto pool = *KvPool::Make(*device, TwoGroups(), {.pool_bytes = 4 * 4096});
  const SlabRef held = *pool->Allocate(0);
  const SlabRef cached = *pool->Allocate(0);
  EXPECT_TRUE(pool->Seal(0, held, {.key = Key(1)}));
  EXPECT_TRUE(pool->Seal(0, cached, {.key = Key(2)}));
  pool->Release(0, cached);
  pool->DropCached();
  EXPECT_TRUE(pool->Contains(0, Key(1)));
  EXPECT_FALSE(pool->Contains(0, Key(2)));
  EXPECT_EQ(pool->stats().groups[0].slabs_free, 1);
}

// The pool as a few maps: what it must hold, and which keys it must still find.
class Model {
 public:
  Model(std::size_t budget, std::vector<std::size_t> slab_bytes)
      : budget_(budget), slab_bytes_(std::move(slab_bytes)), free_(slab_bytes_.size(), 0) {}

  struct Held {
    int refs = 1;
    std::optional<std::uint32_t> key;
    std::uint64_t stamp = 0;
  };
  std::map<std::pair<int, std::uint32_t>, Held> held;             // (group, index)
  std::deque<std::tuple<int, std::uint32_t, std::uint32_t>> lru;  // (group, key, index)

  std::size_t BytesHeld() const {
    std::size_t bytes = 0;
    for (const auto& [id, slab] : held) bytes += slab_bytes_[static_cast<std::size_t>(id.first)];
    return bytes;
  }
  bool Fits(int group) const { return BytesHeld() + Bytes(group) <= budget_; }
  std::size_t Committed() const {
    std::size_t bytes = BytesHeld();
    for (const auto& [group, key, index] : lru) bytes += Bytes(group);
    for (std::size_t g = 0; g < free_.size(); ++g) {
      bytes += static_cast<std::size_t>(free_[g]) * slab_bytes_[g];
    }
    return bytes;
  }
  // What Allocate does to memory that is not held.
  void MakeRoom(int group) {
    while (Free(group) == 0 && Committed() + Bytes(group) > budget_) {
      const auto other = std::find_if(free_.begin(), free_.end(), [](int n) { return n > 0; });
      if (other != free_.end()) {
        --*other;
      } else {
        ++Free(std::get<0>(lru.front()));
        lru.pop_front();
      }
    }
    if (Free(group) > 0) --Free(group);
  }
  int& Free(int group) { return free_[static_cast<std::size_t>(group)]; }
  std::size_t Bytes(int group) const { return slab_bytes_[static_cast<std::size_t>(group)]; }

 private:
  const std::size_t budget_;
  const std::vector<std::size_t> slab_bytes_;
  std::vector<int> free_;
};

std::uint64_t StampOf(KvPool& pool, int group, SlabRef slab) {
  std::uint64_t stamp;
  std::memcpy(&stamp, pool.Address(group, slab) + pool.slab_bytes(group) - sizeof(stamp),
              sizeof(stamp));
  return stamp;
}

void RunAgainstModel(std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) { return static_cast<std::uint32_t>(random() % n); };
  const std::unique_ptr<CpuDevice> device = OneThread();
  const std::size_t budget = 4096 * (3 + below(20)) + below(4096);
  const auto pool = *KvPool::Make(*device, TwoGroups(), {.pool_bytes = budget});
  Model model(budget, {4096, 8192});
  std::map<std::pair<int, std::uint32_t>, std::uint64_t> stamps;  // (group, key) when sealed
  std::uint64_t next_stamp = 1;
  for (int step = 0; step < 1500; ++step) {
    const int group = static_cast<int>(below(2));
    const std::uint32_t key = below(24);
    auto picked = model.held.begin();
    if (!model.held.empty()) std::advance(picked, below(model.held.size()));
    SlabRef slab;
    if (!model.held.empty()) slab.index = picked->first.second & 0xffffffu;
    const std::uint32_t what = below(10);
    if (what < 3) {
      const std::optional<SlabRef> got = pool->Allocate(group);
      ASSERT_EQ(got.has_value(), model.Fits(group));
      if (!got.has_value()) continue;
      model.MakeRoom(group);
      const std::uint64_t stamp = next_stamp++;
      std::memcpy(pool->Address(group, *got) + pool->slab_bytes(group) - sizeof(stamp), &stamp,
                  sizeof(stamp));
      ASSERT_TRUE(
          model.held.insert({{group, got->index}, {.refs = 1, .key = {}, .stamp = stamp}}).second);
    } else if (what < 5) {
      const auto cached = std::find_if(model.lru.begin(), model.lru.end(), [&](const auto& c) {
        return std::get<0>(c) == group && std::get<1>(c) == key;
      });
      const auto held = std::find_if(model.held.begin(), model.held.end(), [&](const auto& h) {
        return h.first.first == group && h.second.key == key;
      });
      const bool known = cached != model.lru.end() || held != model.held.end();
      ASSERT_EQ(pool->Contains(group, Key(key)), known);
      const std::optional<SlabRef> got = pool->Find(group, Key(key));
      ASSERT_EQ(got.has_value(), known);
      if (!known) continue;
      ASSERT_EQ(StampOf(*pool, group, *got), (stamps[{group, key}]));
      if (held != model.held.end()) {
        ++held->second.refs;
      } else {
        ASSERT_EQ(got->index, std::get<2>(*cached));
        model.held[{group, got->index}] = {.refs = 1, .key = key, .stamp = stamps[{group, key}]};
        model.lru.erase(cached);
      }
    } else if (model.held.empty()) {
      continue;
    } else if (what < 6) {
      pool->AddRef(picked->first.first, slab);
      ++picked->second.refs;
    } else if (what < 7) {
      if (picked->second.key.has_value()) continue;
      const bool fresh = !pool->Contains(picked->first.first, Key(key));
      ASSERT_EQ(pool->Seal(picked->first.first, slab, {.key = Key(key)}), fresh);
      if (!fresh) continue;
      picked->second.key = key;
      stamps[{picked->first.first, key}] = picked->second.stamp;
    } else {
      ASSERT_EQ(StampOf(*pool, picked->first.first, slab), picked->second.stamp);
      pool->Release(picked->first.first, slab);
      if (--picked->second.refs > 0) continue;
      if (picked->second.key.has_value()) {
        model.lru.emplace_back(picked->first.first, *picked->second.key, picked->first.second);
      } else {
        ++model.Free(picked->first.first);
      }
      model.held.erase(picked);
    }
    const KvPool::Stats stats = pool->stats();
    ASSERT_EQ(stats.bytes_held, model.BytesHeld());
    ASSERT_EQ(stats.bytes_committed, model.Committed());
    ASSERT_LE(stats.bytes_committed, budget);
    ASSERT_EQ(stats.bytes_committed, stats.bytes_held + stats.bytes_cached + stats.bytes_free);
    ASSERT_EQ(stats.groups[0].slabs_cached + stats.groups[1].slabs_cached,
              static_cast<std::int64_t>(model.lru.size()));
  }
}

TEST(KvPoolTest, AgreesWithModel) {
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    RunAgainstModel(seed);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace penstock::engine
