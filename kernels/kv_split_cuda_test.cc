// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_split_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "base/seed_testing.h"
#include "kernels/cuda_kv_block.h"
#include "kernels/cuda_testing.h"
#include "kernels/elementwise.h"
#include "kernels/kv_split.h"

namespace penstock::kernels {
namespace {

using Bytes = std::vector<std::byte>;

constexpr KvDtype kDtypes[] = {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32};
enum class Content { kNormal, kUnevenColumns, kFewEscapes, kZeros, kAnyBits };
constexpr Content kContents[] = {Content::kNormal, Content::kUnevenColumns, Content::kFewEscapes,
                                 Content::kZeros, Content::kAnyBits};

struct Shape {
  std::int32_t k_dim, v_dim, block_tokens, page_tokens;
};
constexpr Shape kShapes[] = {
    {128, 128, 32, 32}, {64, 72, 16, 4}, {8, 40, 8, 8}, {24, 200, 64, 16}, {8, 16, 8, 1}};

PageLayout Layout(KvDtype dtype, const Shape& s) {
  return *PageLayout::Make(
      {.cache_layers = 2, .kv_heads = 2, .k_dim = s.k_dim, .v_dim = s.v_dim, .dtype = dtype},
      s.block_tokens, s.page_tokens);
}

Bytes Slab(const PageLayout& layout, Content content, std::mt19937& random) {
  Bytes slab(layout.slab_bytes(), std::byte{0xff});
  const std::size_t element = BytesPerElement(layout.group.dtype);
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < layout.block_bytes() / element; ++i) {
    float value = 0;
    if (content == Content::kAnyBits) {
      const std::uint32_t bits = random();
      std::memcpy(&slab[i * element], &bits, element);
      continue;
    }
    if (content == Content::kNormal) value = normal(random);
    if (content == Content::kFewEscapes) value = random() % 100 == 0 ? 1e-4f : 1 + normal(random);
    if (content == Content::kUnevenColumns) {
      value = std::ldexp(normal(random), static_cast<int>(i % 8) * 3 - 12);
    }
    NarrowRow(layout.group.dtype, &value, 1, &slab[i * element], nullptr);
  }
  return slab;
}

std::string Describe(const PageLayout& layout) {
  return absl::StrCat("dtype ", static_cast<int>(layout.group.dtype), " k_dim ", layout.group.k_dim,
                      " v_dim ", layout.group.v_dim, " block ", layout.block_tokens, " page ",
                      layout.page_tokens);
}

template <typename With>
void ForEachUnit(const KvSplitBlock& block, With with) {
  for (std::size_t layer = 0; layer < block.layers; ++layer) {
    for (std::size_t head = 0; head < block.heads; ++head) {
      for (const bool keys : {true, false}) with(layer, head, keys);
    }
  }
}

std::uint32_t CountOf(const KvSplitBlock& block, const Bytes& split, std::size_t layer,
                      std::size_t head, bool keys) {
  std::uint32_t count;
  std::memcpy(&count, &split[block.CountAt(layer, head, keys)], sizeof(count));
  return count;
}

// All that is said of the units that could be split; returns how many could not.
int ExpectSameSplit(const PageLayout& layout, const Bytes& want, const Bytes& got) {
  const KvSplitBlock block(layout);
  const KvDtype dtype = KvHalfType(layout.group.dtype);
  int not_split = 0;
  ForEachUnit(block, [&](std::size_t layer, std::size_t head, bool keys) {
    SCOPED_TRACE(absl::StrCat("layer ", layer, " head ", head, keys ? " keys" : " values"));
    const std::uint32_t escapes = CountOf(block, want, layer, head, keys);
    ASSERT_EQ(CountOf(block, got, layer, head, keys), escapes);
    not_split += escapes == kKvSplitNone ? 1 : 0;
    if (escapes == kKvSplitNone) return;
    const auto same = [&](std::string_view what, std::size_t at, std::size_t bytes) {
      ASSERT_EQ(std::memcmp(&got[at], &want[at], bytes), 0) << what;
    };
    const std::size_t n = block.ValuesOf(keys);
    const std::size_t value = block.ValuesAt(head, keys);
    const std::size_t begin = layer * block.layer_bytes();
    same("rest", begin + value, n);
    same("codes", begin + block.values + KvCodeBytes(dtype, value), KvCodeBytes(dtype, n));
    if (block.halves) same("halves", begin + block.values + block.code_bytes + 2 * value, 2 * n);
    const std::size_t tail = block.TailAt(layer, head, keys);
    same("firsts", tail, want[tail] == kKvByColumn ? 1 + block.DimOf(keys) : 1);
    same("escapes", tail + 1 + block.DimOf(keys), escapes);
  });
  return not_split;
}

int ExpectSplit(const PageLayout& layout, const Bytes& slab) {
  SCOPED_TRACE(Describe(layout));
  Bytes want(KvSplitBlock(layout).bytes());
  SplitBlock(layout, slab.data(), want.data());
  const DeviceBuffer<std::byte> device_slab(slab);
  DeviceBuffer<std::byte> out(want.size());
  int not_split = 0;
  ForEachSchedule([&] {
    out.Poison();
    ASSERT_TRUE(Ran(static_cast<cudaError_t>(
        SplitKvCuda(CudaKvSplitOf(layout), device_slab.data(), out.data(), nullptr))));
    not_split = ExpectSameSplit(layout, want, out.Get());
  });
  return not_split;
}

// What a slab is joined from: its units as `split` has them, those in `raw`, and those that could not
// be split, as they are, all at odd places.
Bytes ToJoin(const PageLayout& layout, const Bytes& slab, const Bytes& split, std::uint32_t raw) {
  const KvSplitBlock block(layout);
  const KvDtype dtype = KvHalfType(layout.group.dtype);
  Bytes bytes(1);
  std::vector<KvJoinUnit> table;
  const auto add = [&](const std::byte* from, std::size_t n) {
    bytes.insert(bytes.end(), from, from + n);
    return bytes.size() - n;
  };
  ForEachUnit(block, [&](std::size_t layer, std::size_t head, bool keys) {
    const std::size_t n = block.ValuesOf(keys);
    const std::size_t dim = block.DimOf(keys);
    const std::uint32_t escapes = CountOf(block, split, layer, head, keys);
    KvJoinUnit& unit = table.emplace_back();
    if (escapes == kKvSplitNone || (raw >> table.size() & 1u) != 0) {
      Bytes x(n * BytesPerElement(layout.group.dtype));
      GatherUnit(layout, slab.data(), static_cast<std::int32_t>(layer),
                 static_cast<std::int32_t>(head), keys, x.data());
      unit.rest = add(x.data(), x.size());
      return;
    }
    const std::size_t value = block.ValuesAt(head, keys);
    const std::byte* const from = split.data() + layer * block.layer_bytes();
    const std::byte* const tail = split.data() + block.TailAt(layer, head, keys);
    const bool by_column = tail[0] == kKvByColumn;
    unit.rest = add(from + value, n);
    unit.codes = add(from + block.values + KvCodeBytes(dtype, value), KvCodeBytes(dtype, n));
    unit.firsts = add(tail, by_column ? 1 + dim : 1);
    unit.escapes = add(tail + 1 + dim, escapes);
    if (block.halves) unit.halves = add(from + block.values + block.code_bytes + 2 * value, 2 * n);
    unit.escape_count = escapes;
    unit.kind = by_column ? KvJoinUnit::kByColumn : KvJoinUnit::kOneFirst;
  });
  bytes.resize((bytes.size() + 15) / 16 * 16);
  const auto* const entries = reinterpret_cast<const std::byte*>(table.data());
  bytes.insert(bytes.end(), entries, entries + table.size() * sizeof(KvJoinUnit));
  return bytes;
}

void ExpectJoined(const PageLayout& layout, const Bytes& bytes, const Bytes& want) {
  SCOPED_TRACE(Describe(layout));
  const DeviceBuffer<std::byte> in(bytes);
  DeviceBuffer<std::byte> slab(want.size());
  ForEachSchedule([&] {
    slab.Poison();
    ASSERT_TRUE(Ran(static_cast<cudaError_t>(
        JoinKvCuda(CudaKvSplitOf(layout), in.data(), in.size(), slab.data(), nullptr))));
    const Bytes got = slab.Get();
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_EQ(got[i], want[i]) << "byte " << i;
  });
}

TEST(KvSplitCudaTest, SplitsAsTheHostDoes) {
  std::mt19937 random(1);
  int not_split[std::size(kContents)] = {};
  for (const KvDtype dtype : kDtypes) {
    for (const Shape& shape : kShapes) {
      const PageLayout layout = Layout(dtype, shape);
      for (const Content content : kContents) {
        SCOPED_TRACE(static_cast<int>(content));
        not_split[static_cast<int>(content)] += ExpectSplit(layout, Slab(layout, content, random));
      }
    }
  }
  EXPECT_EQ(not_split[static_cast<int>(Content::kZeros)], 0);
  EXPECT_GT(not_split[static_cast<int>(Content::kAnyBits)], 0);
}

// A sixteenth of a unit's values may escape, and no more.
TEST(KvSplitCudaTest, EscapesUpToTheRoomForThem) {
  const PageLayout layout = Layout(KvDtype::kBF16, {64, 64, 8, 8});
  for (const std::int32_t escapes : {0, 1, 31, 32, 33, 40}) {
    SCOPED_TRACE(escapes);
    Bytes slab(layout.slab_bytes());
    for (std::size_t i = 0; i < layout.block_bytes() / 2; ++i) {
      // The last ones of each unit: the sample sees one in eight at most.
      const bool escape = static_cast<std::int32_t>(512 - i % 512) <= escapes;
      const auto bits = static_cast<std::uint16_t>(ToBF16(escape ? 1e-20f : 1.0f));
      std::memcpy(&slab[2 * i], &bits, 2);
    }
    EXPECT_EQ(ExpectSplit(layout, slab), escapes > 32 ? 8 : 0);
  }
}

TEST(KvSplitCudaTest, JoinsWhatWasSplit) {
  std::mt19937 random(2);
  for (const KvDtype dtype : kDtypes) {
    for (const Shape& shape : kShapes) {
      const PageLayout layout = Layout(dtype, shape);
      for (const Content content : kContents) {
        SCOPED_TRACE(static_cast<int>(content));
        const Bytes slab = Slab(layout, content, random);
        Bytes split(KvSplitBlock(layout).bytes());
        SplitBlock(layout, slab.data(), split.data());
        const Bytes bytes = ToJoin(layout, slab, split, random() % 4 == 0 ? random() : 0);
        Bytes host(slab.size(), std::byte{0xff});
        JoinBlock(layout, bytes, host.data());
        EXPECT_EQ(host, slab);
        ExpectJoined(layout, bytes, slab);
        if (HasFailure()) return;
      }
    }
  }
}

// What a stranger made: any bytes but for the table, whose counts of escapes need not fit.
TEST(KvSplitCudaTest, AnyBytesAreSomeSlab) {
  for (std::uint32_t seed = 0; seed < 15; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 random(seed);
    const PageLayout layout = Layout(kDtypes[seed % 3], kShapes[seed % std::size(kShapes)]);
    const Bytes slab = Slab(layout, Content::kFewEscapes, random);
    Bytes split(KvSplitBlock(layout).bytes());
    SplitBlock(layout, slab.data(), split.data());
    Bytes bytes = ToJoin(layout, slab, split, 0);
    for (std::size_t i = 0; i < bytes.size() - KvJoinTableBytes(layout); ++i) {
      if (random() % 2 == 0) bytes[i] = static_cast<std::byte>(random() % 4 == 0 ? random() : 0);
    }
    Bytes want(slab.size(), std::byte{0xff});
    JoinBlock(layout, bytes, want.data());
    ExpectJoined(layout, bytes, want);
    if (HasFailure()) break;
  }
}

TEST(KvSplitCudaTest, CountEscapesIsWhatSplitsCount) {
  std::mt19937 random(3);
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16}) {
    for (const std::int32_t rows : {4, 8, 60}) {
      const auto n = static_cast<std::size_t>(rows) * 24;
      Bytes x(2 * n), rest(n), codes(n), firsts(25), escapes(n);
      for (std::byte& b : x) b = static_cast<std::byte>(random());
      const KvUnitSplit split = SplitUnit(dtype, rows, 24, x.data(), rest.data(), codes.data(),
                                          firsts.data(), escapes.data());
      EXPECT_GT(split.escapes, 0u);
      EXPECT_EQ(CountEscapes(dtype, codes.data(), n), split.escapes);
    }
  }
}

TEST(KvSplitCudaTest, WhatItDoesNotTakeIsRefused) {
  CudaKvSplit block = CudaKvSplitOf(Layout(KvDtype::kF16, {32, 32, 4, 4}));
  EXPECT_EQ(SplitKvCuda(block, nullptr, nullptr, nullptr), cudaErrorInvalidValue);
  const std::vector<std::byte> in(8 * sizeof(KvJoinUnit));
  EXPECT_EQ(JoinKvCuda(block, in.data(), in.size(), nullptr, nullptr), cudaErrorInvalidValue);
  block = CudaKvSplitOf(Layout(KvDtype::kF16, {32, 32, 8, 8}));
  EXPECT_EQ(JoinKvCuda(block, in.data(), in.size() - 1, nullptr, nullptr), cudaErrorInvalidValue);
  block.dtype = KvDtype::kInt8;
  EXPECT_EQ(SplitKvCuda(block, nullptr, nullptr, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace penstock::kernels
