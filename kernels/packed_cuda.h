// SPDX-License-Identifier: Apache-2.0
// Single weights of a packed matrix, in GPU kernels.
#pragma once

#include "kernels/gpu.h"
//
#include <cstddef>
#include <cstdint>

#include "kernels/packed_layout.h"

namespace penstock::kernels {

GPU_DEVICE int ByteAt(const std::byte* p) { return static_cast<int>(*p); }
GPU_DEVICE float HalfAt(const std::byte* p) { return gpu::FromF16(gpu::Load<std::uint16_t>(p)); }

// As LevelAt of packed_matrix.cc.
GPU_DEVICE int LevelAt(int bits, const std::byte* p, int column) {
  const int quad = column / 4;
  const std::byte* at = p + column % 4;
  if (bits == 8) return ByteAt(at + 64 * quad);
  int level = ByteAt(at + 64 * (quad % 4)) >> (quad / 4 * 4) & 15;
  if (bits == 5) level |= (ByteAt(at + 256) >> quad & 1) << 4;
  if (bits == 6) level |= (ByteAt(at + 256 + 64 * (quad / 4)) >> (quad % 4 * 2) & 3) << 4;
  return level;
}

struct ScaleMin {
  float d;
  float m;
};

// d and m of column c, as ReadBlock of packed_layout.h has them for its half of its block.
GPU_DEVICE ScaleMin ScaleMinAt(WeightFormat format, const std::byte* group, int slot, int column) {
  if (!IsKFormat(format)) {
    const std::byte* at = group + LevelBytes(format) + 2 * slot;
    return {HalfAt(at), HasMin(format) ? HalfAt(at + 2 * kPanelRows) : 0};
  }
  const float d = HalfAt(group + 2 * slot);
  const float dmin = HasMin(format) ? HalfAt(group + 2 * kPanelRows + 2 * slot) : 0;
  const int block = column / kQuantBlock;
  const int half = column / 16 % 2;
  const std::byte* scales = group + SubScaleBegin(format) + 2 * block * kPanelRows + slot;
  const int a = ByteAt(scales);
  const int b = ByteAt(scales + kPanelRows);
  const int own = half == 0 ? a : b;
  switch (KindOf(format)) {
    case ProductKind::kScaleMin:
      return {d * static_cast<float>(a), -(dmin * static_cast<float>(b))};
    case ProductKind::kHalvesMin:
      return {d * static_cast<float>(own & 15), -(dmin * static_cast<float>(own >> 4))};
    default:
      return {d * static_cast<float>(static_cast<std::int8_t>(own)), 0};
  }
}

// As UnpackRow of packed_matrix.h gives it. `format` is w's: kernels of one format name it, so that its
// branches are gone.
GPU_DEVICE float WeightAt(WeightFormat format, const PackedMatrix& w, int row, int column) {
  const int slot = row % kPanelRows;
  const std::byte* panel = w.data + row / kPanelRows * PanelBytes(format, w.cols);
  const std::byte* group =
      panel + std::size_t{1} * (column / GroupCols(format)) * GroupBytes(format);
  if (format == WeightFormat::kF32) return gpu::Load<float>(group + 4 * slot);
  if (format == WeightFormat::kF16) return HalfAt(group + 2 * slot);
  if (format == WeightFormat::kBF16) {
    return gpu::FloatFromBits(std::uint32_t{gpu::Load<std::uint16_t>(group + 2 * slot)} << 16);
  }
  const int at = column % GroupCols(format);
  const std::byte* levels = group;
  if (IsKFormat(format)) levels += KLevelsBegin(format) + at / kQuantBlock * LevelBytes(format);
  const int level = LevelAt(LevelBits(format), levels + 4 * slot, at % kQuantBlock);
  const ScaleMin s = ScaleMinAt(format, group, slot, at);
  const float product = static_cast<float>(level - LevelOffset(format)) * s.d;
  return HasMin(format) ? product + s.m : product;
}

}  // namespace penstock::kernels
