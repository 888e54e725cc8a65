// SPDX-License-Identifier: Apache-2.0
// How the bytes of a PackedMatrix lie; for packed_matrix.cc and the linear_*.cc targets only.
//
// A matrix is its panels of 16 rows one after another; a panel is its groups of columns one after
// another. With "16 x T" for a T of each of the panel's rows, side by side:
//
// F32, F16, BF16: a group is one column: 16 x T.
//
// Formats of 32-blocks: a group is a block: levels, then 16 x f16 d, then (Q4_1, Q5_1) 16 x f16 m.
// K formats: a group is a super-block of eight blocks of 32:
//   16 x f16 d, then (Q2_K, Q4_K, Q5_K) 16 x f16 dmin,
//   8 x { 16 x a, 16 x b }   a and b are bytes: scale and min of the block (Q4_K, Q5_K), signed
//                            scales of its two halves (Q3_K, Q6_K), or scale | min << 4 of its two
//                            halves (Q2_K)
//   8 x levels
// levels: the 32 columns of a block are 8 quads of 4. A vector of 64 bytes holds, at byte 4 * row +
// t, column t of some quads of that row:
//   8 bits: 8 vectors, vector v = quad v, as level + 128
//   else:   4 vectors, low nibble of vector v = low 4 bits of quad v, high nibble = of quad v + 4
//   5 bits: 1 more vector, bit v = bit 4 of quad v
//   6 bits: 2 more vectors, bits 2v and 2v + 1 of vector p = bits 4 and 5 of quad 4p + v
// So columns 0..15 are low nibbles and quads 0..3, columns 16..31 high nibbles and quads 4..7.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/packed_matrix.h"

namespace penstock::kernels {

// How a block of 32 columns becomes a float; see linear.h.
enum class ProductKind : std::uint8_t { kFloat, kScale, kScaleMin, kHalves, kHalvesMin };

constexpr ProductKind KindOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
      return ProductKind::kFloat;
    case WeightFormat::kQ4_0:
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ8_0:
      return ProductKind::kScale;
    case WeightFormat::kQ4_1:
    case WeightFormat::kQ5_1:
    case WeightFormat::kQ4_K:
    case WeightFormat::kQ5_K:
      return ProductKind::kScaleMin;
    case WeightFormat::kQ3_K:
    case WeightFormat::kQ6_K:
      return ProductKind::kHalves;
    case WeightFormat::kQ2_K:
      return ProductKind::kHalvesMin;
  }
  return ProductKind::kFloat;
}

constexpr bool IsKFormat(WeightFormat format) { return format >= WeightFormat::kQ2_K; }

// Bits of a packed level; of a weight for float formats.
constexpr std::int32_t LevelBits(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return 32;
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
      return 16;
    case WeightFormat::kQ8_0:
      return 8;
    case WeightFormat::kQ6_K:
      return 6;
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ5_1:
    case WeightFormat::kQ5_K:
      return 5;
    default:
      return 4;
  }
}

// What is subtracted from a packed level.
constexpr std::int32_t LevelOffset(WeightFormat format) {
  switch (format) {
    case WeightFormat::kQ3_K:
      return 4;
    case WeightFormat::kQ4_0:
      return 8;
    case WeightFormat::kQ5_0:
      return 16;
    case WeightFormat::kQ6_K:
      return 32;
    case WeightFormat::kQ8_0:
      return 128;
    default:
      return 0;
  }
}

// Whether a group has f16 minima (m or dmin) behind its f16 scales.
constexpr bool HasMin(WeightFormat format) {
  return KindOf(format) == ProductKind::kScaleMin || KindOf(format) == ProductKind::kHalvesMin;
}

// Bytes of the levels of one block of 32 columns of a panel.
constexpr std::int32_t LevelBytes(WeightFormat format) {
  return LevelBits(format) * kPanelRows * kQuantBlock / 8;
}

constexpr std::int32_t GroupCols(WeightFormat format) {
  if (KindOf(format) == ProductKind::kFloat) return 1;
  return IsKFormat(format) ? 256 : kQuantBlock;
}

// Bytes before the levels of a K group: f16 d and dmin, then the sub-scales.
constexpr std::int32_t SubScaleBegin(WeightFormat format) {
  return (HasMin(format) ? 2 : 1) * 2 * kPanelRows;
}
constexpr std::int32_t KLevelsBegin(WeightFormat format) {
  return SubScaleBegin(format) + 8 * 2 * kPanelRows;
}

constexpr std::int32_t GroupBytes(WeightFormat format) {
  if (KindOf(format) == ProductKind::kFloat) return LevelBits(format) / 8 * kPanelRows;
  if (IsKFormat(format)) return KLevelsBegin(format) + 8 * LevelBytes(format);
  return LevelBytes(format) + (HasMin(format) ? 2 : 1) * 2 * kPanelRows;
}

constexpr std::size_t PanelBytes(WeightFormat format, std::int32_t cols) {
  return static_cast<std::size_t>(cols / GroupCols(format)) * GroupBytes(format);
}

// 32 columns of one row, decoded: weight c is level[c] * d[c / 16] + m[c / 16], and m is 0 for
// formats without.
struct PackedBlock {
  std::int32_t level[kQuantBlock];
  float d[2];
  float m[2];
};
PackedBlock ReadBlock(const PackedMatrix& matrix, std::int32_t row, std::int32_t block);

// Weight (row, col) of a float format, widened.
float ReadFloat(const PackedMatrix& matrix, std::int32_t row, std::int32_t col);

}  // namespace penstock::kernels
