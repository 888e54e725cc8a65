// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_encoding.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/kv_split.h"

namespace penstock::kernels {
namespace {

constexpr float kMagnitudeMax = 65504;  // The largest F16, which scales and minima are.
constexpr std::int32_t kBlockTokensMin = 8;

std::size_t ScaleBytes(const KvQuantWay& way, const KvMatrix& m) {
  if (way.kind == KvQuantWay::kChannels) return 2 * static_cast<std::size_t>(m.dim);
  const bool int8 = way.kind == KvQuantWay::kInt8Rows;
  return 2 * static_cast<std::size_t>(m.rows) *
         (int8 ? 1 : static_cast<std::size_t>(KvGroups(m.dim)));
}

}  // namespace

KvMatrix MatrixOf(const PageLayout& layout, bool keys) {
  return {layout.group.dtype, layout.block_tokens, keys ? layout.group.k_dim : layout.group.v_dim};
}

std::size_t CodeBytes(const KvQuantWay& way, const KvMatrix& m) {
  return static_cast<std::size_t>(m.rows) * static_cast<std::size_t>(m.dim) *
         static_cast<std::size_t>(way.bits) / 8;
}

std::size_t RangeBytes(const KvQuantWay& way, const KvMatrix& m) {
  return ScaleBytes(way, m) * (way.kind == KvQuantWay::kInt8Rows ? 1 : 2);
}

void EncodeMatrix(const KvQuantWay& way, const KvMatrix& m, const std::byte* x, std::byte* codes,
                  std::byte* ranges) {
  std::byte* const minima = ranges + ScaleBytes(way, m);
  switch (way.kind) {
    case KvQuantWay::kInt8Rows:
      return QuantizeInt8(m, x, codes, ranges);
    case KvQuantWay::kGroups:
      return QuantizeGroups(way.bits, m, x, codes, ranges, minima);
    case KvQuantWay::kChannels:
      return QuantizeChannels(way.bits, m, x, codes, ranges, minima);
  }
}

void DecodeMatrix(const KvQuantWay& way, const KvMatrix& m, const std::byte* codes,
                  const std::byte* ranges, std::byte* x) {
  const std::byte* const minima = ranges + ScaleBytes(way, m);
  switch (way.kind) {
    case KvQuantWay::kInt8Rows:
      return DequantizeInt8(m, codes, ranges, x);
    case KvQuantWay::kGroups:
      return DequantizeGroups(way.bits, m, codes, ranges, minima, x);
    case KvQuantWay::kChannels:
      return DequantizeChannels(way.bits, m, codes, ranges, minima, x);
  }
}

KvPlanes::KvPlanes(const KvEncoding& encoding, const KvMatrix& k, const KvMatrix& v,
                   std::int32_t kv_heads)
    : heads(static_cast<std::size_t>(kv_heads)) {
  bytes[0] = heads * CodeBytes(encoding.keys, k);
  bytes[1] = heads * RangeBytes(encoding.keys, k);
  bytes[2] = heads * CodeBytes(encoding.values, v);
  bytes[3] = heads * RangeBytes(encoding.values, v);
}

KvPlanes::KvPlanes(const KvEncoding& encoding, const PageLayout& layout)
    : KvPlanes(encoding, MatrixOf(layout, true), MatrixOf(layout, false), layout.group.kv_heads) {}

bool OpsEncode(const PageLayout& layout) {
  return layout.group.dtype != KvDtype::kInt8 && layout.block_tokens >= kBlockTokensMin;
}

std::size_t EncodedBlockBytes(const KvEncoding& encoding, const PageLayout& layout) {
  if (encoding.lossless) return KvSplitBlock(layout).bytes();
  const KvPlanes planes(encoding, layout);
  return static_cast<std::size_t>(layout.group.cache_layers) *
         (planes.layer_bytes() + 2 * planes.heads);
}

// Those with a loss have a byte per value at most, and of int8 a scale of two per row.
std::size_t EncodedBlockBytesMax(const PageLayout& layout) {
  return std::max(EncodedBlockBytes({}, layout), EncodedBlockBytes({.lossless = true}, layout));
}
std::size_t EncodedBytesMax(const PageLayout& layout) {
  return std::max(EncodedBlockBytes({}, layout), KvJoinBytesMax(layout));
}

void EncodeBlock(const KvEncoding& encoding, const PageLayout& layout, const std::byte* slab,
                 std::byte* out) {
  CHECK(layout.group.dtype != KvDtype::kInt8);
  if (encoding.lossless) return SplitBlock(layout, slab, out);
  const KvPlanes planes(encoding, layout);
  const auto layers = static_cast<std::size_t>(layout.group.cache_layers);
  std::byte* fault = out + layers * planes.layer_bytes();
  std::vector<std::byte> gathered(std::max(layout.k_row_bytes(), layout.v_row_bytes()) *
                                  static_cast<std::size_t>(layout.block_tokens));
  for (std::int32_t layer = 0; layer < layout.group.cache_layers; ++layer) {
    for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
      for (const bool keys : {true, false}) {
        GatherUnit(layout, slab, layer, head, keys, gathered.data());
        const KvMatrix m = MatrixOf(layout, keys);
        const auto count = static_cast<std::size_t>(m.rows) * static_cast<std::size_t>(m.dim);
        const bool good = MaxMagnitude(m.dtype, gathered.data(), count) <= kMagnitudeMax;
        *fault++ = std::byte{good ? std::uint8_t{0} : std::uint8_t{1}};
        if (!good) continue;
        EncodeMatrix(keys ? encoding.keys : encoding.values, m, gathered.data(),
                     out + planes.CodesAt(keys, head), out + planes.RangesAt(keys, head));
      }
    }
    out += planes.layer_bytes();
  }
}

void DecodeBlock(const KvEncoding& encoding, const PageLayout& layout,
                 std::span<const std::byte> encoded, std::byte* slab) {
  CHECK(layout.group.dtype != KvDtype::kInt8);
  if (encoding.lossless) return JoinBlock(layout, encoded, slab);
  const KvPlanes planes(encoding, layout);
  CHECK_EQ(encoded.size(),
           static_cast<std::size_t>(layout.group.cache_layers) * planes.layer_bytes());
  std::vector<std::byte> matrix(std::max(layout.k_row_bytes(), layout.v_row_bytes()) *
                                static_cast<std::size_t>(layout.block_tokens));
  const std::byte* in = encoded.data();
  for (std::int32_t layer = 0; layer < layout.group.cache_layers; ++layer) {
    for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
      for (const bool keys : {true, false}) {
        DecodeMatrix(keys ? encoding.keys : encoding.values, MatrixOf(layout, keys),
                     in + planes.CodesAt(keys, head), in + planes.RangesAt(keys, head),
                     matrix.data());
        ScatterUnit(layout, matrix.data(), layer, head, keys, slab);
      }
    }
    in += planes.layer_bytes();
  }
}

}  // namespace penstock::kernels
