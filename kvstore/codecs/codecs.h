// SPDX-License-Identifier: Apache-2.0
// The codecs behind CodecOf, and what they share.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "kvstore/codecs/codec.h"

namespace penstock::kvstore {

// Live as long as the process.
const Codec& RawCodec();
const Codec& PlanesCodec();
const Codec& PlanesZstdCodec();
const Codec& Int8Codec();
const Codec& K8v4Codec();
const Codec& Kivi4Codec();
const Codec& Kivi2Codec();
const Codec& AnsFineCodec();
const Codec& AnsMediumCodec();
const Codec& AnsCoarseCodec();

// INVALID_ARGUMENT with both numbers, unless they are equal.
absl::Status CheckPlane(const Codec& codec, std::string_view plane, std::size_t got_bytes,
                        std::size_t want_bytes);

// INVALID_ARGUMENT where a value of the layer is infinite, a NaN or beyond 65,504, the largest F16,
// which scales and minima are.
absl::Status CheckMagnitude(const Codec& codec, const BlockShape& shape, const std::byte* layer);

// All that DecodeLayer of int8, k8v4, kivi4 or kivi2 says of a layer.
absl::Status CheckQuantLayer(CodecId id, const BlockShape& shape,
                             std::span<const std::uint32_t> plane_bytes, const std::byte* in);

// A layer of planes or planes+zstd, as EncodeLayer of a block that was split (kernels/kv_split.h, none
// of whose units has too many escapes).
void EncodeSplitLayer(const Codec& codec, const PageLayout& layout, std::int32_t layer,
                      const std::byte* split, CodecScratch& scratch, std::byte* out,
                      std::span<std::uint32_t> plane_bytes);

// Whether an F16 of them is infinite or a NaN.
bool HasNonFinite(const std::byte* halves, std::size_t bytes);

// One head's K or V of a layer: [block_tokens, dim], from `offset` on in the canonical layer.
struct KvUnit {
  std::size_t offset;
  std::int32_t dim;
  bool keys;
};
// Units of a layer: head after head, K before V.
constexpr std::int32_t UnitsOf(const BlockShape& shape) { return 2 * shape.kv_heads; }
inline KvUnit UnitOf(const BlockShape& shape, std::int32_t i) {
  const std::size_t row =
      BytesPerElement(shape.dtype) * static_cast<std::size_t>(shape.block_tokens);
  const std::size_t page = row * static_cast<std::size_t>(shape.k_dim + shape.v_dim);
  const std::size_t begin = page * static_cast<std::size_t>(i / 2);
  if (i % 2 == 0) return {begin, shape.k_dim, true};
  return {begin + row * static_cast<std::size_t>(shape.k_dim), shape.v_dim, false};
}

}  // namespace penstock::kvstore
