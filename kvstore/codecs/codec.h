// SPDX-License-Identifier: Apache-2.0
// How a block's KV becomes the payload of a frame, and back. Layer by layer, so that one layer can
// travel while the next is encoded.
//
//   CodecScratch scratch;  // One per thread, kept.
//   std::vector<std::byte> out(FrameBytesMax(codec, ShapeOf(layout), false));
//   ASSIGN_OR_RETURN(const std::size_t bytes,
//                    EncodeFrame(codec, meta, layout, slab, {}, scratch, out));
//   ...
//   ASSIGN_OR_RETURN(const Frame frame, ParseFrame(bytes, {.key = key, .shape = ShapeOf(layout)}));
//   RETURN_IF_ERROR(DecodeFrame(frame, layout, scratch, slab));
//
// All but raw take float KV alone (CheckTakes). Lossless codecs give back every bit of any block.
// Lossy ones take finite values of up to 65,504 in magnitude only; a block that has others stays
// with a lossless one. The same block gives the same bytes on every CPU (with zstd: by the same
// version of it).
//
// Codecs are immutable; any thread may use them, each with a scratch of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/kv_spec.h"
#include "kernels/kv_encoding.h"
#include "kvstore/codecs/codec_id.h"
#include "kvstore/codecs/frame.h"

namespace penstock::kvstore {

// Memory that codecs reuse: bounded by a few times the largest layer they met. One thread at a
// time.
class CodecScratch {
 public:
  CodecScratch();
  ~CodecScratch();
  CodecScratch(const CodecScratch&) = delete;
  CodecScratch& operator=(const CodecScratch&) = delete;

  // Who uses which part: nobody uses two of the same.
  enum Part { kPages, kHalves, kCodes, kFirsts, kEscapes, kParts };
  // At least `bytes` bytes, of any content; valid until that part is asked for again.
  std::byte* Room(Part part, std::size_t bytes);

  struct Zstd;
  Zstd& zstd() { return *zstd_; }

 private:
  std::vector<std::byte> parts_[kParts];
  const std::unique_ptr<Zstd> zstd_;
};

class Codec {
 public:
  virtual ~Codec() = default;
  virtual CodecId id() const = 0;
  // Of what its planes hold: another number cannot be decoded.
  virtual std::uint8_t version() const = 0;
  virtual std::int32_t planes() const = 0;
  virtual std::size_t LayerBytesMax(const BlockShape& shape) const = 0;

  // `layer`: the canonical pages of one cache layer. Writes its planes, one behind the other, to
  // `out` (LayerBytesMax bytes, more than the planes may need) and their lengths to `plane_bytes`
  // [planes]. INVALID_ARGUMENT: a lossy codec met a value that it cannot take.
  virtual absl::Status EncodeLayer(const BlockShape& shape, const std::byte* layer,
                                   CodecScratch& scratch, std::byte* out,
                                   std::span<std::uint32_t> plane_bytes) const = 0;
  // The reverse; `in` has as many bytes as plane_bytes [planes] say, of any content.
  // INVALID_ARGUMENT, naming plane and numbers: not of this shape and codec. What was written until
  // then is of no use.
  virtual absl::Status DecodeLayer(const BlockShape& shape,
                                   std::span<const std::uint32_t> plane_bytes, const std::byte* in,
                                   CodecScratch& scratch, std::byte* layer) const = 0;
};

// Any CodecId of the enumeration.
const Codec& CodecOf(CodecId id);

// What a frame says besides what the codec makes.
struct FrameMeta {
  BlockKey key;
  LossClass loss = LossClass::kExact;  // Of what the key names, and of the codec: the worse.
  std::int32_t group = 0;
  std::int32_t first_position = 0;  // A multiple of block_tokens.
};

// Room that EncodeFrame needs. Frames are smaller.
std::size_t FrameBytesMax(const Codec& codec, const BlockShape& shape, bool authenticated);

// Encodes the slab of a whole block, of any page size, and returns how many bytes of `out` the
// frame has. As EncodeLayer; INVALID_ARGUMENT also for an exact copy by a codec with a loss,
// KV of a dtype that the codec does not take, or a layout beyond what frames hold.
absl::StatusOr<std::size_t> EncodeFrame(const Codec& codec, const FrameMeta& meta,
                                        const PageLayout& layout, const std::byte* slab,
                                        std::optional<Secret> secret, CodecScratch& scratch,
                                        std::span<std::byte> out);

// What EncodeBlock of kernels/kv_encoding.h takes to make the layers of a codec's frames; none where
// it makes no such.
std::optional<kernels::KvEncoding> EncodingOf(CodecId id);
// As EncodeFrame, of a block that was encoded so: [EncodedBlockBytes]. The same frame.
// RESOURCE_EXHAUSTED: it has too many escapes for what was encoded to hold; its slab is needed.
absl::StatusOr<std::size_t> FrameEncoded(const Codec& codec, const FrameMeta& meta,
                                         const PageLayout& layout, const std::byte* encoded,
                                         std::optional<Secret> secret, CodecScratch& scratch,
                                         std::span<std::byte> out);

// INVALID_ARGUMENT, with both: of a version of its codec that this program does not read.
absl::Status CheckReads(const FrameHeader& header);

// One layer, checked by CheckFrameLayer, into its pages in a slab of the frame's shape and any page
// size. As DecodeLayer; INVALID_ARGUMENT also for another version of the codec,
// FAILED_PRECONDITION for another shape.
absl::Status DecodeFrameLayer(const FrameHeader& header, std::int32_t layer,
                              std::span<const std::byte> payload, const PageLayout& layout,
                              CodecScratch& scratch, std::byte* slab);

// As DecodeFrame, of a frame of such a codec and a layout that kernels/kv_encoding.h's OpsEncode takes;
// but nothing is decoded: all is checked that DecodeFrame would, and what comes back is what makes
// DecodeBlock of kernels/kv_encoding.h write the same slab. `payload`: the frame's.
absl::StatusOr<kernels::EncodedBlock> EncodedOf(const FrameHeader& header, const PageLayout& layout,
                                                CodecScratch& scratch,
                                                std::vector<std::byte> payload);

// A whole frame, as ParseFrame gives it.
absl::Status DecodeFrame(const Frame& frame, const PageLayout& layout, CodecScratch& scratch,
                         std::byte* slab);

}  // namespace penstock::kvstore
