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

template <WeightFormat format>
constexpr bool kInHalves = KindOf(format) == ProductKind::kHalves ||
                           KindOf(format) == ProductKind::kHalvesMin;

// Where the bytes of a block lie: in shared memory, for one panel.
struct BlockAt {
  const std::byte* levels;
  const std::byte* scales;      // [16] f16 d, then m or dmin
  const std::byte* sub_scales;  // K formats: [16] a, [16] b
};

// Centred levels of fewer than eight bits are taken shifted up to the top of a byte, where their sign
// is the byte's: i is then 2^kLevelShift times as large, and d as much smaller, which is exact.
template <WeightFormat format>
constexpr int kLevelShift = LevelOffset(format) == 4    ? 5
                            : LevelOffset(format) == 8  ? 4
                            : LevelOffset(format) == 16 ? 3
                            : LevelOffset(format) == 32 ? 2
                                                        : 0;

// d * 2^-kLevelShift and m of both halves of a block (of the whole block at [0] for kScale,
// kScaleMin) for rows 2g and 2g + 1, and c = -kStart * d of the half that is multiplied first.
struct RowScales {
  float d[2][2];  // [half][row]
  float m[2][2];
  float c[2];
};

template <WeightFormat format>
constexpr float kDown = 1.0f / (1 << kLevelShift<format>);

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
  d[0] *= kDown<format>;
  d[1] *= kDown<format>;
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
GPU_DEVICE void SetFirstProduct(RowScales& s) {
  constexpr int first = kInHalves<format> ? 1 : 0;
  s.c[0] = s.d[first][0] * -kStart;
  s.c[1] = s.d[first][1] * -kStart;
}

template <WeightFormat format>
GPU_DEVICE void LoadScales(const BlockAt& at, int g, RowScales& s) {
  if constexpr (IsKFormat(format)) {
    LoadSubScales<format>(at, g, s);
  } else {
    LoadF16Pair(at.scales + 4 * g, s.d[0]);
    s.d[0][0] *= kDown<format>;
    s.d[0][1] *= kDown<format>;
    if constexpr (HasMin(format)) LoadF16Pair(at.scales + 2 * kPanelRows + 4 * g, s.m[0]);
  }
  SetFirstProduct<format>(s);
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

// The levels of a block as the mma operand a, centred, times 2^kLevelShift.
template <WeightFormat format>
GPU_DEVICE void LoadLevels(const std::byte* levels, int g, int t, std::uint32_t (&a)[4]) {
  constexpr int bits = LevelBits(format);
  constexpr bool centred = LevelOffset(format) != 0;
  constexpr std::uint32_t sign = 0x80 * kOnes;
  const auto low = gpu::Load<uint2>(levels + 64 * t + 8 * g);
  const std::uint32_t words[2] = {low.x, low.y};
  if constexpr (bits == 8) {
    const auto high = gpu::Load<uint2>(levels + 64 * (t + 4) + 8 * g);
    a[0] = low.x ^ sign;
    a[1] = low.y ^ sign;
    a[2] = high.x ^ sign;
    a[3] = high.y ^ sign;
  } else if constexpr (bits == 4) {
    // Bits from kLevelShift up; of Q3_K three.
    constexpr int shift = kLevelShift<format>;
    constexpr std::uint32_t mask = centred ? (0xff << shift & 0xff) * kOnes : 0x0f * kOnes;
    constexpr std::uint32_t flip = centred ? sign : 0;
    GPU_UNROLL()
    for (int row = 0; row < 2; ++row) {
      a[row] = (words[row] << shift & mask) ^ flip;
      a[2 + row] = ((shift >= 4 ? words[row] << (shift & 3) : words[row] >> 4) & mask) ^ flip;
    }
  } else if constexpr (bits == 5) {
    const auto top = gpu::Load<uint2>(levels + 256 + 8 * g);
    const std::uint32_t tops[2] = {top.x, top.y};
    GPU_UNROLL()
    for (int row = 0; row < 2; ++row) {
      if constexpr (centred) {
        a[row] = ((words[row] << 3 & 0x78 * kOnes) | (tops[row] << (7 - t) & sign)) ^ sign;
        a[2 + row] = ((words[row] >> 1 & 0x78 * kOnes) | (tops[row] << (3 - t) & sign)) ^ sign;
      } else {
        a[row] = (words[row] & 0x0f * kOnes) | (tops[row] << (4 - t) & 0x10 * kOnes);
        a[2 + row] = (words[row] >> 4 & 0x0f * kOnes) | (tops[row] >> t & 0x10 * kOnes);
      }
    }
  } else {
    const auto first = gpu::Load<uint2>(levels + 256 + 8 * g);
    const auto second = gpu::Load<uint2>(levels + 320 + 8 * g);
    const std::uint32_t firsts[2] = {first.x, first.y};
    const std::uint32_t seconds[2] = {second.x, second.y};
    constexpr std::uint32_t tops = 0xc0 * kOnes;
    GPU_UNROLL()
    for (int row = 0; row < 2; ++row) {
      a[row] = ((words[row] << 2 & 0x3c * kOnes) | (firsts[row] << (6 - 2 * t) & tops)) ^ sign;
      a[2 + row] = ((words[row] >> 2 & 0x3c * kOnes) | (seconds[row] << (6 - 2 * t) & tops)) ^ sign;
    }
  }
}

// Integer sums of a block: 16 rows times 8 columns of x, as an mma leaves them, from kStartBits on.
struct LevelSums {
  int low[4];   // Of columns 0..15; of the whole block for kScale, kScaleMin.
  int high[4];  // Of columns 16..31.
};
// Sums of q alone, for columns 2t and 2t + 1 of x.
struct XSums {
  float low[2];
  float high[2];
};

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

GPU_DEVICE float SumFrom(int started) {
  return gpu::FloatFromBits(static_cast<std::uint32_t>(started)) - kStart;
}

// Whatever of XSums the format has a use for.
template <WeightFormat format>
GPU_DEVICE XSums SumX(std::uint32_t b0, std::uint32_t b1) {
  XSums sums = {};
  if constexpr (HasMin(format)) {
    int low[4];
    int high[4];
    Start(low);
    Start(high);
    if constexpr (kInHalves<format>) {
      gpu::MmaInt8Half(low, kOnes, kOnes, b0);
      gpu::MmaInt8Half(high, kOnes, kOnes, b1);
    } else {
      const std::uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
      gpu::MmaInt8(low, ones, b0, b1);
    }
    GPU_UNROLL()
    for (int e = 0; e < 2; ++e) {
      sums.low[e] = SumFrom(low[e]);
      sums.high[e] = SumFrom(high[e]);
    }
  }
  return sums;
}

// t of element e: weight row 2g + e / 2, column 2t + e % 2 of x.
template <WeightFormat format>
GPU_DEVICE float BlockValue(const LevelSums& sums, const XSums& x, const RowScales& s, int e) {
  const int row = e / 2;
  if constexpr (!kInHalves<format>) {
    const float started = gpu::FloatFromBits(static_cast<std::uint32_t>(sums.low[e]));
    float t = gpu::Fma(started, s.d[0][row], s.c[row]);
    if constexpr (HasMin(format)) t = gpu::Fma(s.m[0][row], x.low[e % 2], t);
    return t;
  } else {
    const float started = gpu::FloatFromBits(static_cast<std::uint32_t>(sums.high[e]));
    float t = gpu::Fma(started, s.d[1][row], s.c[row]);
    t = gpu::Fma(SumFrom(sums.low[e]), s.d[0][row], t);
    if constexpr (HasMin(format)) {
      t = gpu::Fma(x.low[e % 2], s.m[0][row], t);
      t = gpu::Fma(x.high[e % 2], s.m[1][row], t);
    }
    return t;
  }
}

}  // namespace penstock::kernels::linear_cuda
