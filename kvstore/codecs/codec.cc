// SPDX-License-Identifier: Apache-2.0
#include "kvstore/codecs/codec.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"
#include "kernels/kv_codec_quant.h"
#include "kernels/kv_encoding.h"
#include "kernels/kv_split.h"
#include "kvstore/codecs/codecs.h"

namespace penstock::kvstore {
namespace {

constexpr float kMagnitudeMax = 65504;

// Calls with(offset in the canonical layer, offset in the slab, bytes) for every piece of `layer`.
template <typename With>
void ForEachPiece(const PageLayout& layout, std::int32_t layer, With with) {
  PageLayout canonical = layout;
  canonical.page_tokens = layout.block_tokens;
  const std::vector<PagePart> to_parts = canonical.Parts();
  const std::vector<PagePart> from_parts = layout.Parts();
  for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
    for (std::int32_t page = 0; page < layout.pages_per_block(); ++page) {
      const std::size_t to = canonical.PageOffset(0, head, 0);
      const std::size_t from = layout.PageOffset(layer, head, page);
      for (std::size_t i = 0; i < from_parts.size(); ++i) {
        const std::size_t bytes =
            from_parts[i].row_bytes * static_cast<std::size_t>(layout.page_tokens);
        with(to + to_parts[i].offset + static_cast<std::size_t>(page) * bytes,
             from + from_parts[i].offset, bytes);
      }
    }
  }
}

class Raw final : public Codec {
 public:
  CodecId id() const override { return CodecId::kRaw; }
  std::uint8_t version() const override { return 1; }
  std::int32_t planes() const override { return 1; }
  std::size_t LayerBytesMax(const BlockShape& shape) const override { return shape.layer_bytes(); }

  absl::Status EncodeLayer(const BlockShape& shape, const std::byte* layer, CodecScratch&,
                           std::byte* out, std::span<std::uint32_t> plane_bytes) const override {
    std::memcpy(out, layer, shape.layer_bytes());
    plane_bytes[0] = static_cast<std::uint32_t>(shape.layer_bytes());
    return absl::OkStatus();
  }
  absl::Status DecodeLayer(const BlockShape& shape, std::span<const std::uint32_t> plane_bytes,
                           const std::byte* in, CodecScratch&, std::byte* layer) const override {
    RETURN_IF_ERROR(CheckPlane(*this, "pages", plane_bytes[0], shape.layer_bytes()));
    std::memcpy(layer, in, shape.layer_bytes());
    return absl::OkStatus();
  }
};

absl::Status CheckCanFrame(const Codec& codec, const FrameMeta& meta, const BlockShape& shape) {
  RETURN_IF_ERROR(CheckTakes(codec.id(), shape.dtype));
  if (!IsLossless(codec.id()) && meta.loss == LossClass::kExact) {
    return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(codec.id())),
                                                   " makes no copies of class ",
                                                   ToAbsl(ToString(meta.loss))));
  }
  RETURN_IF_ERROR(CheckRange("cache layers of a frame", shape.cache_layers, 1, kFrameLayersMax));
  RETURN_IF_ERROR(CheckRange("KV heads of a frame", shape.kv_heads, 1, kFrameHeadsMax));
  RETURN_IF_ERROR(CheckRange("group of a frame", meta.group, 0, 255));
  RETURN_IF_ERROR(CheckRange("first position of a frame", meta.first_position, 0, INT32_MAX));
  if (meta.first_position % shape.block_tokens != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("first position of a frame must be a multiple of ", shape.block_tokens,
                     ", got ", meta.first_position));
  }
  return CheckRange("bytes of a layer of a frame",
                    static_cast<std::int64_t>(codec.LayerBytesMax(shape)), 1,
                    static_cast<std::int64_t>(kFrameLayerBytesMax));
}

}  // namespace

const Codec& RawCodec() {
  static const Raw codec;
  return codec;
}

const Codec& CodecOf(CodecId id) {
  switch (id) {
    case CodecId::kRaw:
      break;
    case CodecId::kPlanes:
      return PlanesCodec();
    case CodecId::kPlanesZstd:
      return PlanesZstdCodec();
    case CodecId::kInt8:
      return Int8Codec();
    case CodecId::kK8v4:
      return K8v4Codec();
    case CodecId::kKivi4:
      return Kivi4Codec();
    case CodecId::kKivi2:
      return Kivi2Codec();
    case CodecId::kAnsFine:
      return AnsFineCodec();
    case CodecId::kAnsMedium:
      return AnsMediumCodec();
    case CodecId::kAnsCoarse:
      return AnsCoarseCodec();
  }
  CHECK(id == CodecId::kRaw);
  return RawCodec();
}

absl::Status CheckPlane(const Codec& codec, std::string_view plane, std::size_t got_bytes,
                        std::size_t want_bytes) {
  if (got_bytes == want_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(codec.id())), ": plane ",
                                                 ToAbsl(plane), " has ", want_bytes, " bytes, got ",
                                                 got_bytes));
}

absl::Status CheckMagnitude(const Codec& codec, const BlockShape& shape, const std::byte* layer) {
  const float magnitude =
      kernels::MaxMagnitude(shape.dtype, layer, shape.layer_bytes() / BytesPerElement(shape.dtype));
  if (magnitude <= kMagnitudeMax) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(codec.id())),
                                                 " takes finite values of up to 65504, got ",
                                                 magnitude));
}

bool HasNonFinite(const std::byte* halves, std::size_t bytes) {
  bool found = false;
  for (std::size_t i = 0; i < bytes; i += 2) {
    std::uint16_t half;
    std::memcpy(&half, halves + i, sizeof(half));
    found |= (half & 0x7C00) == 0x7C00;
  }
  return found;
}

std::byte* CodecScratch::Room(Part part, std::size_t bytes) {
  if (parts_[part].size() < bytes) parts_[part].resize(bytes);
  return parts_[part].data();
}

std::size_t FrameBytesMax(const Codec& codec, const BlockShape& shape, bool authenticated) {
  return FramePayloadAt(FrameHeaderBytes(shape.cache_layers, codec.planes(), authenticated)) +
         codec.LayerBytesMax(shape) * static_cast<std::size_t>(shape.cache_layers);
}

namespace {

// A frame that is being written: its header, and the payload so far.
class FrameWriter {
 public:
  FrameWriter(const Codec& codec, const FrameMeta& meta, const BlockShape& shape,
              std::optional<Secret> secret, std::span<std::byte> out)
      : secret_(secret),
        out_(out),
        header_({.codec = codec.id(),
                 .codec_version = codec.version(),
                 .loss = meta.loss,
                 .key = meta.key,
                 .group = meta.group,
                 .first_position = meta.first_position,
                 .shape = shape,
                 .planes = codec.planes(),
                 .layer_crcs = {},
                 .plane_bytes = {}}),
        header_bytes_(FrameHeaderBytes(shape.cache_layers, codec.planes(), secret.has_value())),
        at_(FramePayloadAt(header_bytes_)) {
    CHECK_GE(out.size(), FrameBytesMax(codec, shape, secret.has_value()));
    const auto layers = static_cast<std::size_t>(shape.cache_layers);
    header_.layer_crcs.resize(layers);
    header_.plane_bytes.resize(layers * static_cast<std::size_t>(header_.planes));
  }

  // Of the next layer: where its planes go, and their lengths.
  std::byte* payload() { return out_.data() + at_; }
  std::span<std::uint32_t> lengths(std::int32_t layer) {
    const auto planes = static_cast<std::size_t>(header_.planes);
    return std::span(header_.plane_bytes).subspan(static_cast<std::size_t>(layer) * planes, planes);
  }
  // The layer's payload is there, or, with its checksum, was.
  void Add(std::int32_t layer) {
    Add(layer, kernels::Crc32c(0, payload(), static_cast<std::size_t>(header_.LayerBytes(layer))));
  }
  void Add(std::int32_t layer, std::uint32_t crc) {
    header_.layer_crcs[static_cast<std::size_t>(layer)] = crc;
    at_ += static_cast<std::size_t>(header_.LayerBytes(layer));
  }
  // The bytes of all.
  std::size_t Finish() {
    WriteFrameHeader(header_, secret_, out_.first(header_bytes_));
    const std::size_t payload_at = FramePayloadAt(header_bytes_);
    std::ranges::fill(out_.subspan(header_bytes_, payload_at - header_bytes_), std::byte{0});
    return at_;
  }

 private:
  const std::optional<Secret> secret_;
  const std::span<std::byte> out_;
  FrameHeader header_;
  const std::size_t header_bytes_;
  std::size_t at_;
};

}  // namespace

absl::StatusOr<std::size_t> EncodeFrame(const Codec& codec, const FrameMeta& meta,
                                        const PageLayout& layout, const std::byte* slab,
                                        std::optional<Secret> secret, CodecScratch& scratch,
                                        std::span<std::byte> out) {
  const BlockShape shape = ShapeOf(layout);
  RETURN_IF_ERROR(CheckCanFrame(codec, meta, shape));
  FrameWriter writer(codec, meta, shape, secret, out);
  for (std::int32_t layer = 0; layer < shape.cache_layers; ++layer) {
    const std::byte* pages = slab + layout.PageOffset(layer, 0, 0);
    if (layout.pages_per_block() > 1) {
      std::byte* const gathered = scratch.Room(CodecScratch::kPages, shape.layer_bytes());
      ForEachPiece(layout, layer, [&](std::size_t to, std::size_t from, std::size_t bytes) {
        std::memcpy(gathered + to, slab + from, bytes);
      });
      pages = gathered;
    }
    const std::span<std::uint32_t> lengths = writer.lengths(layer);
    if (codec.id() == CodecId::kRaw) {  // In one pass.
      lengths[0] = static_cast<std::uint32_t>(shape.layer_bytes());
      writer.Add(layer, kernels::CopyCrc32c(0, pages, lengths[0], writer.payload()));
      continue;
    }
    RETURN_IF_ERROR(codec.EncodeLayer(shape, pages, scratch, writer.payload(), lengths));
    writer.Add(layer);
  }
  return writer.Finish();
}

namespace {

// Layers with a loss: as they are in a frame.
absl::Status FrameQuantized(const Codec& codec, const PageLayout& layout, const std::byte* encoded,
                            FrameWriter& writer) {
  const kernels::KvPlanes planes(*EncodingOf(codec.id()), layout);
  const std::size_t layer_bytes = planes.layer_bytes();
  const auto layers = static_cast<std::size_t>(layout.group.cache_layers);
  const std::byte* const faults = encoded + layer_bytes * layers;
  if (std::any_of(faults, faults + 2 * planes.heads * layers,
                  [](std::byte b) { return b != std::byte{0}; })) {
    return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(codec.id())),
                                                   " takes finite values of up to 65504"));
  }
  for (std::int32_t layer = 0; layer < layout.group.cache_layers; ++layer, encoded += layer_bytes) {
    std::ranges::transform(planes.bytes, writer.lengths(layer).begin(),
                           [](std::size_t bytes) { return static_cast<std::uint32_t>(bytes); });
    writer.Add(layer, kernels::CopyCrc32c(0, encoded, layer_bytes, writer.payload()));
  }
  return absl::OkStatus();
}

absl::Status FrameSplit(const Codec& codec, const PageLayout& layout, const std::byte* split,
                        CodecScratch& scratch, FrameWriter& writer) {
  const kernels::KvSplitBlock block(layout);
  for (std::size_t unit = 0; unit < 2 * block.heads * block.layers; ++unit) {
    std::uint32_t escapes;
    std::memcpy(&escapes, split + block.CountAt(0, 0, true) + 4 * unit, sizeof(escapes));
    const std::size_t most = block.EscapesMax(unit % 2 == 0);
    if (escapes > most) {
      return absl::ResourceExhaustedError(
          absl::StrCat("unit ", unit, " of a block has more escapes than ", most));
    }
  }
  for (std::int32_t layer = 0; layer < layout.group.cache_layers; ++layer) {
    EncodeSplitLayer(codec, layout, layer, split, scratch, writer.payload(), writer.lengths(layer));
    writer.Add(layer);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::size_t> FrameEncoded(const Codec& codec, const FrameMeta& meta,
                                         const PageLayout& layout, const std::byte* encoded,
                                         std::optional<Secret> secret, CodecScratch& scratch,
                                         std::span<std::byte> out) {
  const BlockShape shape = ShapeOf(layout);
  RETURN_IF_ERROR(CheckCanFrame(codec, meta, shape));
  const std::optional<kernels::KvEncoding> encoding = EncodingOf(codec.id());
  CHECK(encoding.has_value());
  FrameWriter writer(codec, meta, shape, secret, out);
  RETURN_IF_ERROR(encoding->lossless ? FrameSplit(codec, layout, encoded, scratch, writer)
                                     : FrameQuantized(codec, layout, encoded, writer));
  return writer.Finish();
}

absl::Status CheckReads(const FrameHeader& header) {
  const Codec& codec = CodecOf(header.codec);
  if (header.codec_version == codec.version() && header.planes == codec.planes()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("codec ", ToAbsl(ToString(codec.id())), " of version ", header.codec_version,
                   " and ", header.planes, " planes; this program reads version ", codec.version(),
                   " and ", codec.planes()));
}

absl::Status DecodeFrameLayer(const FrameHeader& header, std::int32_t layer,
                              std::span<const std::byte> payload, const PageLayout& layout,
                              CodecScratch& scratch, std::byte* slab) {
  const BlockShape shape = ShapeOf(layout);
  if (header.shape != shape) {
    return absl::FailedPreconditionError("a frame of another shape than the slab it is for");
  }
  RETURN_IF_ERROR(CheckReads(header));
  CHECK_EQ(payload.size(), header.LayerBytes(layer));
  std::byte* pages = slab + layout.PageOffset(layer, 0, 0);
  const bool direct = layout.pages_per_block() == 1;
  if (!direct) pages = scratch.Room(CodecScratch::kPages, shape.layer_bytes());
  RETURN_IF_ERROR(CodecOf(header.codec)
                      .DecodeLayer(shape, header.PlanesOf(layer), payload.data(), scratch, pages));
  if (!direct) {
    ForEachPiece(layout, layer, [&](std::size_t from, std::size_t to, std::size_t bytes) {
      std::memcpy(slab + to, pages + from, bytes);
    });
  }
  return absl::OkStatus();
}

absl::Status DecodeFrame(const Frame& frame, const PageLayout& layout, CodecScratch& scratch,
                         std::byte* slab) {
  std::size_t at = 0;
  for (std::int32_t layer = 0; layer < frame.header.shape.cache_layers; ++layer) {
    const auto bytes = static_cast<std::size_t>(frame.header.LayerBytes(layer));
    RETURN_IF_ERROR(DecodeFrameLayer(frame.header, layer, frame.payload.subspan(at, bytes), layout,
                                     scratch, slab));
    at += bytes;
  }
  return absl::OkStatus();
}

}  // namespace penstock::kvstore
