// SPDX-License-Identifier: Apache-2.0
#include "transfer/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <regex>
#include <string>
#include <vector>

namespace penstock::transfer {
namespace {

KvGroup Group(std::int32_t heads, std::int32_t k_dim = 16, std::int32_t v_dim = 8) {
  return {.window_tokens = 0, .cache_layers = 3, .kv_heads = heads, .k_dim = k_dim, .v_dim = v_dim};
}

SideLayout Side(const KvGroup& group, std::int32_t block_tokens, std::int32_t page_tokens,
                std::int32_t head_begin = 0) {
  return {PageLayout::Make(group, block_tokens, page_tokens).value(), head_begin};
}

// Which element a byte belongs to, independent of layout.
std::uint32_t Mark(std::int32_t layer, std::int32_t head, int part, std::int32_t token,
                   std::size_t byte) {
  std::uint32_t h = 2166136261u;
  for (const std::uint32_t x : {static_cast<std::uint32_t>(layer), static_cast<std::uint32_t>(head),
                                static_cast<std::uint32_t>(part), static_cast<std::uint32_t>(token),
                                static_cast<std::uint32_t>(byte)}) {
    h = (h ^ x) * 16777619u;
    h ^= h >> 15;
  }
  return h;
}

// Calls visit(offset in the slab, layer, model's head, part, token, byte of the row) for every byte
// of a slab, element by element, by the definition of a page; its parts are K, V and with int8 the
// scales of both.
template <typename Visit>
void ForEachByte(const SideLayout& side, Visit visit) {
  const PageLayout& layout = side.layout;
  const std::size_t element = BytesPerElement(layout.group.dtype);
  for (std::int32_t layer = 0; layer < layout.group.cache_layers; ++layer) {
    for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
      for (std::int32_t token = 0; token < layout.block_tokens; ++token) {
        const std::size_t page = layout.PageOffset(layer, head, token / layout.page_tokens);
        const auto row = static_cast<std::size_t>(token % layout.page_tokens);
        const std::size_t k = element * static_cast<std::size_t>(layout.group.k_dim);
        const std::size_t v = element * static_cast<std::size_t>(layout.group.v_dim);
        const std::size_t scale = layout.group.dtype == KvDtype::kInt8 ? 2 : 0;
        std::size_t begin = page;
        int part = 0;
        for (const std::size_t bytes : {k, v, scale, scale}) {
          for (std::size_t i = 0; i < bytes; ++i) {
            visit(begin + row * bytes + i, layer, side.head_begin + head, part, token, i);
          }
          begin += static_cast<std::size_t>(layout.page_tokens) * bytes;
          ++part;
        }
      }
    }
  }
}

std::vector<std::uint8_t> Filled(const SideLayout& side) {
  std::vector<std::uint8_t> slab(side.layout.slab_bytes(), 0xEE);
  ForEachByte(side, [&](std::size_t at, std::int32_t layer, std::int32_t head, int part,
                        std::int32_t token, std::size_t byte) {
    slab[at] = static_cast<std::uint8_t>(Mark(layer, head, part, token, byte));
  });
  return slab;
}

void Move(const LayerPlan& plan, std::int32_t layer, const std::vector<std::uint8_t>& from,
          std::vector<std::uint8_t>& to) {
  for (const ByteRun& run : plan.runs()) {
    const std::size_t begin = plan.FromOffset(layer) + run.from;
    const std::size_t place = plan.ToOffset(layer) + run.to;
    ASSERT_LE(begin + run.bytes, from.size());
    ASSERT_LE(place + run.bytes, to.size());
    std::memcpy(&to[place], &from[begin], run.bytes);
  }
}

void CheckRuns(const LayerPlan& plan) {
  std::size_t bytes = 0;
  const ByteRun* last = nullptr;
  for (const ByteRun& run : plan.runs()) {
    EXPECT_GT(run.bytes, 0u);
    if (last != nullptr) {
      EXPECT_GE(run.from, last->from + last->bytes);
      EXPECT_FALSE(run.from == last->from + last->bytes && run.to == last->to + last->bytes)
          << "two runs that are one";
    }
    bytes += run.bytes;
    last = &run;
  }
  EXPECT_EQ(bytes, plan.unit_bytes());
}

// Heads that worker `rank` of `tp` holds: a share, or one that several workers hold.
struct Share {
  std::int32_t begin, count;
};
Share ShareOf(std::int32_t heads, std::int32_t tp, std::int32_t rank) {
  if (tp >= heads) return {rank / (tp / heads), 1};
  return {rank * (heads / tp), heads / tp};
}

// All receivers' slabs, filled through the plans from all senders, are what filling them element by
// element gives; no byte outside is touched.
TEST(LayerPlanTest, MovingThroughPlansIsMovingElementByElement) {
  for (std::uint32_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE("seed=" + std::to_string(seed));
    std::mt19937 random(seed);
    const auto pick = [&](std::int32_t n) {
      return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(n));
    };
    const std::int32_t heads = 1 << pick(4);
    KvGroup group = Group(heads, 8 * (1 + pick(3)), 8 * (1 + pick(3)));
    group.cache_layers = 1 + pick(3);
    const KvDtype dtypes[] = {KvDtype::kF16, KvDtype::kF32, KvDtype::kInt8};
    group.dtype = dtypes[pick(3)];
    const std::int32_t least = group.dtype == KvDtype::kInt8 ? 4 : 1;  // Of a page.
    const std::int32_t block_tokens = least << pick(7);
    const auto page_tokens = [&] {
      return least << pick(std::countr_zero(static_cast<unsigned>(block_tokens / least)) + 1);
    };
    const std::int32_t from_tp = 1 << pick(4), to_tp = 1 << pick(4);
    const auto sides = [&](std::int32_t tp) {
      std::vector<SideLayout> made;
      const std::int32_t page = page_tokens();
      for (std::int32_t rank = 0; rank < tp; ++rank) {
        KvGroup own = group;
        const Share share = ShareOf(heads, tp, rank);
        own.kv_heads = share.count;
        made.push_back(Side(own, block_tokens, page, share.begin));
      }
      return made;
    };
    const std::vector<SideLayout> senders = sides(from_tp);
    for (const SideLayout& receiver : sides(to_tp)) {
      std::vector<std::uint8_t> got(receiver.layout.slab_bytes(), 0xEE);
      std::vector<bool> have(static_cast<std::size_t>(heads), false);
      for (const SideLayout& sender : senders) {
        const std::int32_t begin = std::max(sender.head_begin, receiver.head_begin);
        const std::int32_t end = std::min(sender.head_begin + sender.layout.group.kv_heads,
                                          receiver.head_begin + receiver.layout.group.kv_heads);
        const absl::StatusOr<LayerPlan> plan = LayerPlan::Make(sender, receiver);
        ASSERT_EQ(plan.ok(), begin < end) << plan.status();
        // Of replicas, the first.
        if (begin >= end || have[static_cast<std::size_t>(begin)]) continue;
        for (std::int32_t h = begin; h < end; ++h) have[static_cast<std::size_t>(h)] = true;
        CheckRuns(*plan);
        const std::vector<std::uint8_t> from = Filled(sender);
        for (std::int32_t layer = 0; layer < group.cache_layers; ++layer)
          Move(*plan, layer, from, got);
      }
      ASSERT_EQ(got, Filled(receiver));
    }
  }
}

TEST(LayerPlanTest, EqualLayoutsAreOneRun) {
  const SideLayout side = Side(Group(4), 32, 8);
  const LayerPlan plan = LayerPlan::Make(side, side).value();
  const auto bytes = static_cast<std::uint32_t>(side.layout.block_bytes() / 3);
  EXPECT_EQ(plan.runs(), (std::vector<ByteRun>{{0, 0, bytes}}));
  EXPECT_EQ(plan.unit_bytes(), bytes);
  EXPECT_EQ(plan.FromOffset(2), 2 * plan.unit_bytes());
}

TEST(LayerPlanTest, OneHeadOfSeveralIsOneRunWherePagesAreEqual) {
  const SideLayout all = Side(Group(4), 32, 8);
  const SideLayout one = Side(Group(1), 32, 8, 2);
  const auto head = static_cast<std::uint32_t>(one.layout.block_bytes() / 3);
  EXPECT_EQ(LayerPlan::Make(all, one)->runs(), (std::vector<ByteRun>{{2 * head, 0, head}}));
  EXPECT_EQ(LayerPlan::Make(one, all)->runs(), (std::vector<ByteRun>{{0, 2 * head, head}}));
}

TEST(LayerPlanTest, UnlikeSidesAreNamedWithBothValues) {
  const SideLayout base = Side(Group(4), 32, 8);
  struct Case {
    const char* want;
    void (*change)(SideLayout&);
  };
  for (const Case& c : {
           Case{"block_tokens is 32 at the sender, 16 at the receiver",
                [](SideLayout& s) { s.layout.block_tokens = 16; }},
           Case{"cache_layers is 3 at the sender, 4 at the receiver",
                [](SideLayout& s) { s.layout.group.cache_layers = 4; }},
           Case{"window_tokens is 0 at the sender, 512 at the receiver",
                [](SideLayout& s) { s.layout.group.window_tokens = 512; }},
           Case{"k_dim is 16 at the sender, 8 at the receiver",
                [](SideLayout& s) { s.layout.group.k_dim = 8; }},
           Case{"v_dim is 8 at the sender, 16 at the receiver",
                [](SideLayout& s) { s.layout.group.v_dim = 16; }},
           Case{"KV dtype is f16 at the sender, bf16 at the receiver",
                [](SideLayout& s) { s.layout.group.dtype = KvDtype::kBF16; }},
           Case{"no KV head in common: the sender has 0 to 3, the receiver 4 to 7",
                [](SideLayout& s) { s.head_begin = 4; }},
       }) {
    SideLayout other = base;
    c.change(other);
    const absl::Status status = LayerPlan::Make(base, other).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(status.message(), c.want);
  }
}

TEST(LayerPlanTest, OffsetsThatNeedMoreThan32BitsAreRefused) {
  KvGroup group = Group(4096, 1024, 1024);
  group.dtype = KvDtype::kF32;
  const SideLayout side = Side(group, 1024, 1024);
  const absl::Status status = LayerPlan::Make(side, side).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(), "a layer of a block must be less than 4 GiB, got 34359738368 bytes");
}

}  // namespace
}  // namespace penstock::transfer
