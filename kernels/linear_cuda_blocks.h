// SPDX-License-Identifier: Apache-2.0
// What the linear_cuda kernels share: packed levels as tensor core operands, and the value t that a
// block of 32 columns adds to an output (kernels/linear.h).
//
// A panel's 16 rows are the 16 rows of an mma in the order 0, 2, 4, ... 14, 1, 3, ... 15, so that
// lane (g, t) = (lane / 4, lane % 4) has rows 2g and 2g + 1, which lie side by side.
#pragma once

#include "kernels/gpu.h"
//
#include <cstddef>
#include <cstdint>

#include "kernels/linear_cuda_kernels.h"
#include "kernels/packed_layout.h"

namespace penstock::kernels::linear_cuda {

// 1.5 * 2^23. An integer sum i that starts at the bits of this float is, read as a float, exactly
// kStart + i for |i| < 2^22; the largest |i| is 128 * 127 * 32. Then fma(kStart + i, d, -kStart * d)
// is float(i) * d rounded once, and +0 where that is zero: -kStart * d is exact, since d has at most
// 19 significant bits.
inline constexpr float kStart = 12582912.0f;
inline constexpr int kStartBits = 0x4b400000;
inline constexpr std::uint32_t kOnes = 0x01010101;

// The product that a tile of the launch belongs to.
GPU_DEVICE Product ProductOf(const Products& p, int tile) {
  Product product = p.product[0];
  if (p.count > 1 && tile >= p.product[1].tile_begin) product = p.product[1];
  if (p.count > 2 && tile >= p.product[2].tile_begin) product = p.product[2];
  return product;
}

// Output (x row, weight row), where there is one.
GPU_DEVICE void WriteOutput(const Product& p, int rows, int row, int w_row, float sum) {
  if (row >= rows || w_row >= p.w_rows) return;
  if (p.bias != nullptr) sum += p.bias[w_row];
  float* y = p.y + std::int64_t{row} * p.w_rows + w_row;
  *y = p.add ? *y + sum : sum;
}

// Where the bytes of a block lie: in shared memory, for one panel.
struct BlockAt {
  const std::byte* levels;
  const std::byte* scales;      // [16] f16 d, then m or dmin
  const std::byte* sub_scales;  // K formats: [16] a, [16] b
};

// d and m of both halves of a block (of the whole block at [0] for kScale, kScaleMin) for rows 2g
// and 2g + 1, and c = -kStart * d of the half that is multiplied first.
struct RowScales {
  float d[2][2];  // [half][row]
  float m[2][2];
  float c[2];
};

GPU_DEVICE void LoadF16Pair(const std::byte* p, float (&out)[2]) {
  const auto bits = gpu::Load<std::uint32_t>(p);
  out[0] = gpu::FromF16(static_cast<std::uint16_t>(bits & 0xffff));
  out[1] = gpu::FromF16(static_cast<std::uint16_t>(bits >> 16));
}

template <WeightFormat format>
GPU_DEVICE void LoadSubScales(const BlockAt& at, int g, RowScales& s) {
  constexpr ProductKind kind = KindOf(format);
  float d[2];
  float dmin[2] = {0, 0};
  LoadF16Pair(at.scales + 4 * g, d);
  if constexpr (HasMin(format)) LoadF16Pair(at.scales + 2 * kPanelRows + 4 * g, dmin);
  const auto a = gpu::Load<std::uint16_t>(at.sub_scales + 2 * g);
  const auto b = gpu::Load<std::uint16_t>(at.sub_scales + kPanelRows + 2 * g);
  GPU_UNROLL()
  for (int row = 0; row < 2; ++row) {
    const int ab[2] = {a >> (8 * row) & 255, b >> (8 * row) & 255};
    if constexpr (kind == ProductKind::kScaleMin) {
      s.d[0][row] = d[row] * static_cast<float>(ab[0]);
      s.m[0][row] = -(dmin[row] * static_cast<float>(ab[1]));
    } else if constexpr (kind == ProductKind::kHalvesMin) {
      GPU_UNROLL()
      for (int half = 0; half < 2; ++half) {
        s.d[half][row] = d[row] * static_cast<float>(ab[half] & 15);
        s.m[half][row] = -(dmin[row] * static_cast<float>(ab[half] >> 4));
      }
    } else {
      s.d[0][row] = d[row] * static_cast<float>(static_cast<std::int8_t>(ab[0]));
      s.d[1][row] = d[row] * static_cast<float>(static_cast<std::int8_t>(ab[1]));
    }
  }
}

template <WeightFormat format>
GPU_DEVICE void LoadScales(const BlockAt& at, int g, RowScales& s) {
  if constexpr (IsKFormat(format)) {
    LoadSubScales<format>(at, g, s);
  } else {
    LoadF16Pair(at.scales + 4 * g, s.d[0]);
    if constexpr (HasMin(format)) LoadF16Pair(at.scales + 2 * kPanelRows + 4 * g, s.m[0]);
  }
  constexpr int first =
      KindOf(format) == ProductKind::kHalves || KindOf(format) == ProductKind::kHalvesMin ? 1 : 0;
  s.c[0] = s.d[first][0] * -kStart;
  s.c[1] = s.d[first][1] * -kStart;
}

// A unit: 256 columns of a panel, contiguous in memory.
inline constexpr int kUnitBlocks = 8;
template <WeightFormat format>
constexpr int kBlockBytes = GroupBytes(format) / (IsKFormat(format) ? kUnitBlocks : 1);
template <WeightFormat format>
constexpr int kUnitBytes = GroupBytes(format) * (IsKFormat(format) ? 1 : kUnitBlocks);
template <WeightFormat format>
GPU_DEVICE BlockAt UnitBlock(const std::byte* unit, int block) {
  if constexpr (IsKFormat(format)) {
    return {unit + KLevelsBegin(format) + block * LevelBytes(format), unit,
            unit + SubScaleBegin(format) + block * 2 * kPanelRows};
  } else {
    const std::byte* group = unit + block * GroupBytes(format);
    return {group, group + LevelBytes(format), nullptr};
  }
}

// The levels of a block as the mma operand a, centred.
template <WeightFormat format>
GPU_DEVICE void LoadLevels(const std::byte* levels, int g, int t, std::uint32_t (&a)[4]) {
  constexpr int bits = LevelBits(format);
  constexpr std::uint32_t offset = LevelOffset(format) * kOnes;
  const auto low = gpu::Load<uint2>(levels + 64 * t + 8 * g);
  if constexpr (bits == 8) {
    const auto high = gpu::Load<uint2>(levels + 64 * (t + 4) + 8 * g);
    a[0] = low.x ^ offset;
    a[1] = low.y ^ offset;
    a[2] = high.x ^ offset;
    a[3] = high.y ^ offset;
    return;
  }
  constexpr std::uint32_t nibbles = 0x0f0f0f0f;
  a[0] = low.x & nibbles;
  a[1] = low.y & nibbles;
  a[2] = low.x >> 4 & nibbles;
  a[3] = low.y >> 4 & nibbles;
  if constexpr (bits == 5) {
    const auto top = gpu::Load<uint2>(levels + 256 + 8 * g);
    a[0] |= (top.x >> t & kOnes) << 4;
    a[1] |= (top.y >> t & kOnes) << 4;
    a[2] |= (top.x >> (t + 4) & kOnes) << 4;
    a[3] |= (top.y >> (t + 4) & kOnes) << 4;
  }
  if constexpr (bits == 6) {
    const auto first = gpu::Load<uint2>(levels + 256 + 8 * g);
    const auto second = gpu::Load<uint2>(levels + 320 + 8 * g);
    a[0] |= (first.x >> (2 * t) & 3 * kOnes) << 4;
    a[1] |= (first.y >> (2 * t) & 3 * kOnes) << 4;
    a[2] |= (second.x >> (2 * t) & 3 * kOnes) << 4;
    a[3] |= (second.y >> (2 * t) & 3 * kOnes) << 4;
  }
  if constexpr (offset != 0) {
    // Byte by byte l - offset: the top bit keeps borrows inside a byte, and its flip is the sign.
    GPU_UNROLL()
    for (std::uint32_t& word : a) word = ((word | 0x80 * kOnes) - offset) ^ 0x80 * kOnes;
  }
}

// Integer sums of a block: 16 rows times 8 columns of x, as an mma leaves them, from kStartBits on.
struct LevelSums {
  int low[4];   // Of columns 0..15; of the whole block for kScale, kScaleMin.
  int high[4];  // Of columns 16..31.
};
// The same of q alone, with the columns of x at [0] and [1].
struct XSums {
  int low[4];
  int high[4];
};

template <WeightFormat format>
constexpr bool kInHalves = KindOf(format) == ProductKind::kHalves ||
                           KindOf(format) == ProductKind::kHalvesMin;

GPU_DEVICE void Start(int (&sums)[4]) {
  GPU_UNROLL()
  for (int& sum : sums) sum = kStartBits;
}

template <WeightFormat format>
GPU_DEVICE void AddLevels(const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                          LevelSums& sums) {
  if constexpr (kInHalves<format>) {
    gpu::MmaInt8Half(sums.low, a[0], a[1], b0);
    gpu::MmaInt8Half(sums.high, a[2], a[3], b1);
  } else {
    gpu::MmaInt8(sums.low, a, b0, b1);
  }
}

template <WeightFormat format>
GPU_DEVICE void AddX(std::uint32_t b0, std::uint32_t b1, XSums& sums) {
  if constexpr (KindOf(format) == ProductKind::kScaleMin) {
    const std::uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    gpu::MmaInt8(sums.low, ones, b0, b1);
  }
  if constexpr (KindOf(format) == ProductKind::kHalvesMin) {
    gpu::MmaInt8Half(sums.low, kOnes, kOnes, b0);
    gpu::MmaInt8Half(sums.high, kOnes, kOnes, b1);
  }
}

GPU_DEVICE float SumFrom(int started) {
  return gpu::FloatFromBits(static_cast<std::uint32_t>(started)) - kStart;
}

// t of element e: weight row 2g + e / 2, column 2t + e % 2 of x.
template <WeightFormat format>
GPU_DEVICE float BlockValue(const LevelSums& sums, const XSums& x, const RowScales& s, int e) {
  const int row = e / 2;
  if constexpr (!kInHalves<format>) {
    const float started = gpu::FloatFromBits(static_cast<std::uint32_t>(sums.low[e]));
    float t = gpu::Fma(started, s.d[0][row], s.c[row]);
    if constexpr (HasMin(format)) t = gpu::Fma(s.m[0][row], SumFrom(x.low[e % 2]), t);
    return t;
  } else {
    const float started = gpu::FloatFromBits(static_cast<std::uint32_t>(sums.high[e]));
    float t = gpu::Fma(started, s.d[1][row], s.c[row]);
    t = gpu::Fma(SumFrom(sums.low[e]), s.d[0][row], t);
    if constexpr (HasMin(format)) {
      t = gpu::Fma(SumFrom(x.low[e % 2]), s.m[0][row], t);
      t = gpu::Fma(SumFrom(x.high[e % 2]), s.m[1][row], t);
    }
    return t;
  }
}

}  // namespace penstock::kernels::linear_cuda
