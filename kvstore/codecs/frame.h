// SPDX-License-Identifier: Apache-2.0
// A frame: one block of one group, encoded, with all that is needed to know what it is and that it
// is whole. It is the same object on the wire, in host memory and on disk, and is never encoded
// again when it moves. It holds no token ids.
//
// A header, zeros up to a multiple of 4,096 bytes, so that a payload can be mapped and read around
// page caches, then the payload: cache layer after cache layer, each of `planes` planes (what is in
// them is the codec's matter), nothing between and nothing behind. Little-endian:
//
//   at bytes
//    0    4  "PKVF"
//    4    1  format version, kFrameVersion
//    5    1  CodecId
//    6    1  the codec's version
//    7    1  KvDtype of the block: 0 f16, 1 bf16, 2 f32, 3 int8
//    8    1  LossClass of this copy
//    9    1  checksum: 1 = CRC32C
//   10    1  authentication: 0 none, 1 = HMAC-SHA256
//   11    1  planes per layer, 1 to 8
//   12    4  bytes of the header, a multiple of 64
//   16    8  bytes of the payload
//   24   32  the block's key: namespace, chain
//   56    4  group of the KvSpec
//   60    4  first position, a multiple of block_tokens
//   64    4  positions covered; in this version block_tokens
//   68    4  block_tokens
//   72    4  cache layers
//   76    4  KV heads
//   80    4  k_dim
//   84    4  v_dim
//   88       per layer: checksum of its payload [4], bytes of each of its planes [4 x planes]
//            zeros up to what follows, which ends the header
//           32  with authentication: the MAC of all bytes above
//            4  checksum of all bytes above
//
// The MAC, by the cluster's secret, covers the checksums and not the payload itself. CRC32C finds
// faults; who has one authentic frame, and can write where frames are kept, can make a payload that
// fits its checksums. A tier that strangers can write to is no tier to read from.
//
// Plain values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/kv_spec.h"
#include "kvstore/codecs/codec_id.h"

namespace penstock::kvstore {

inline constexpr std::uint8_t kFrameVersion = 1;
inline constexpr std::size_t kFrameFixedBytes = 88;
inline constexpr std::size_t kFramePageBytes = 4096;
inline constexpr std::int32_t kFramePlanesMax = 8;
inline constexpr std::int32_t kFrameLayersMax = 1024;
inline constexpr std::int32_t kFrameHeadsMax = 1024;
// Of one layer's payload.
inline constexpr std::uint64_t kFrameLayerBytesMax = std::uint64_t{1} << 31;

// What a block of a group looks like, whatever the pages of the pool that it is in: canonical are
// [cache_layers, kv_heads] pages of block_tokens tokens.
struct BlockShape {
  KvDtype dtype = KvDtype::kF16;
  std::int32_t block_tokens = 0;
  std::int32_t cache_layers = 0;
  std::int32_t kv_heads = 0;
  std::int32_t k_dim = 0;
  std::int32_t v_dim = 0;

  bool operator==(const BlockShape&) const = default;
  std::size_t layer_bytes() const {
    const KvGroup group = {
        .cache_layers = 1, .kv_heads = kv_heads, .k_dim = k_dim, .v_dim = v_dim, .dtype = dtype};
    return group.BytesPerToken() * static_cast<std::size_t>(block_tokens);
  }
};
BlockShape ShapeOf(const PageLayout& layout);

struct FrameHeader {
  CodecId codec{};
  std::uint8_t codec_version = 0;
  LossClass loss = LossClass::kExact;
  BlockKey key;
  std::int32_t group = 0;
  std::int32_t first_position = 0;
  BlockShape shape;
  std::int32_t planes = 0;
  std::vector<std::uint32_t> layer_crcs;   // [cache_layers]
  std::vector<std::uint32_t> plane_bytes;  // [cache_layers, planes]

  bool operator==(const FrameHeader&) const = default;
  std::span<const std::uint32_t> PlanesOf(std::int32_t layer) const {
    return std::span(plane_bytes)
        .subspan(static_cast<std::size_t>(layer) * static_cast<std::size_t>(planes),
                 static_cast<std::size_t>(planes));
  }
  std::uint64_t LayerBytes(std::int32_t layer) const;
  std::uint64_t payload_bytes() const;
};

using Secret = std::span<const std::byte>;

// Bytes of a header of so many layers and planes.
std::size_t FrameHeaderBytes(std::int32_t cache_layers, std::int32_t planes, bool authenticated);
// Where the payload begins behind a header of so many bytes.
constexpr std::size_t FramePayloadAt(std::size_t header_bytes) {
  return (header_bytes + kFramePageBytes - 1) / kFramePageBytes * kFramePageBytes;
}
// Of a frame of so many bytes, with such a header, those that travel: the zeros between are known.
constexpr std::size_t FrameBytesSent(std::size_t header_bytes, std::size_t frame_bytes) {
  return frame_bytes - (FramePayloadAt(header_bytes) - header_bytes);
}
// Writes FrameHeaderBytes bytes to `out`, which has exactly those. `header` is as ParseFrameHeader
// would accept it.
void WriteFrameHeader(const FrameHeader& header, std::optional<Secret> secret,
                      std::span<std::byte> out);

// How many bytes the header has that begins with `start` (16 bytes at least): for who reads a
// stream. INVALID_ARGUMENT: no frame, another version (the message has both), or a length that no
// header has.
absl::StatusOr<std::size_t> FrameHeaderBytesOf(std::span<const std::byte> start);

// What the reader wants to hold.
struct FrameExpected {
  std::optional<BlockKey> key = {};
  std::optional<BlockShape> shape = {};
  std::optional<Secret> secret = {};  // Then only a frame with its MAC will do.
};
// Reads the header at the start of `bytes`, which may end anywhere behind it.
// DATA_LOSS: cut off, or its checksum or MAC is wrong: fetch it elsewhere, or recompute.
// INVALID_ARGUMENT: another version, or a field that no frame of this version has; the message
//   names it, its value and the limit.
// FAILED_PRECONDITION: a frame of another block or shape than expected: look up again.
absl::StatusOr<FrameHeader> ParseFrameHeader(std::span<const std::byte> bytes,
                                             const FrameExpected& expected);

// DATA_LOSS, with both numbers, unless `payload` are the bytes of that layer.
absl::Status CheckFrameLayer(const FrameHeader& header, std::int32_t layer,
                             std::span<const std::byte> payload);

// A whole frame, checked to its last byte.
struct Frame {
  FrameHeader header;
  std::span<const std::byte> payload;  // Of the caller's bytes.
};
// As ParseFrameHeader and CheckFrameLayer of all layers; DATA_LOSS also when `bytes` has fewer or
// more than the frame.
absl::StatusOr<Frame> ParseFrame(std::span<const std::byte> bytes, const FrameExpected& expected);

}  // namespace penstock::kvstore
