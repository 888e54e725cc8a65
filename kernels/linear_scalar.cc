// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "kernels/linear_targets.h"
#include "kernels/packed_layout.h"

namespace penstock::kernels {
namespace {

float MultiplyFloat(const PackedMatrix& w, std::int32_t n, const float* x) {
  float p[4] = {0, 0, 0, 0};
  for (std::int32_t k = 0; k < w.cols; ++k) p[k % 4] = std::fma(x[k], ReadFloat(w, n, k), p[k % 4]);
  return (p[0] + p[1]) + (p[2] + p[3]);
}

// Levels times q, and q alone, over both halves of a block.
struct BlockSums {
  std::int32_t i[2] = {0, 0};
  std::int32_t h[2] = {0, 0};
};

BlockSums SumBlock(const PackedBlock& block, const std::int8_t* q) {
  BlockSums sums;
  for (std::int32_t c = 0; c < kQuantBlock; ++c) {
    sums.i[c / 16] += block.level[c] * q[c];
    sums.h[c / 16] += q[c];
  }
  return sums;
}

// a * b, and +0 for -0.
float Product(std::int32_t a, float b) { return static_cast<float>(a) * b + 0.0f; }

float AddBlock(ProductKind kind, const PackedBlock& block, const std::int8_t* q, float scale,
               float acc) {
  const BlockSums sums = SumBlock(block, q);
  float t;
  if (kind == ProductKind::kScale || kind == ProductKind::kScaleMin) {
    t = Product(sums.i[0] + sums.i[1], block.d[0]);
    if (kind == ProductKind::kScaleMin) {
      t = std::fma(block.m[0], static_cast<float>(sums.h[0] + sums.h[1]), t);
    }
  } else {
    t = Product(sums.i[1], block.d[1]);
    t = std::fma(static_cast<float>(sums.i[0]), block.d[0], t);
    if (kind == ProductKind::kHalvesMin) {
      t = std::fma(static_cast<float>(sums.h[0]), block.m[0], t);
      t = std::fma(static_cast<float>(sums.h[1]), block.m[1], t);
    }
  }
  return std::fma(t, scale, acc);
}

}  // namespace

void MultiplyPanelsScalar(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                          std::int32_t panel_begin, std::int32_t panel_end, float* y,
                          std::int64_t y_stride) {
  const ProductKind kind = KindOf(w.format);
  const std::int32_t n_end = std::min(panel_end * kPanelRows, w.rows);
  for (std::int32_t n = panel_begin * kPanelRows; n < n_end; ++n) {
    if (kind == ProductKind::kFloat) {
      for (std::int32_t r = 0; r < rows; ++r) {
        y[r * y_stride + n] = MultiplyFloat(w, n, x.From(r).f32);
      }
      continue;
    }
    for (std::int32_t r = 0; r < rows; ++r) y[r * y_stride + n] = 0;
    for (std::int32_t b = 0; b < x.blocks(); ++b) {
      const PackedBlock block = ReadBlock(w, n, b);
      for (std::int32_t r = 0; r < rows; ++r) {
        const Activations row = x.From(r);
        float& acc = y[r * y_stride + n];
        acc = AddBlock(kind, block, row.q + b * kQuantBlock, row.scale[b], acc);
      }
    }
  }
}

}  // namespace penstock::kernels
