// SPDX-License-Identifier: Apache-2.0
// Frames of blocks that a device encoded, and blocks for a device to decode: the device does what is
// the same for every unit of a block, the host what depends on the units before.
#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "kernels/kv_encoding.h"
#include "kernels/kv_split.h"
#include "kvstore/codecs/codecs.h"
#include "kvstore/codecs/planes_parts.h"

namespace penstock::kvstore {
namespace {

using kernels::KvJoinUnit;
using kernels::KvSplitBlock;

std::uint32_t EscapesOf(const KvSplitBlock& block, const std::byte* split, std::size_t layer,
                        std::size_t head, bool keys) {
  std::uint32_t count;
  std::memcpy(&count, split + block.CountAt(layer, head, keys), sizeof(count));
  return count;
}

// The table of a block that is to be joined, layer by layer, and the codes that had to be
// decompressed, behind the payload.
class JoinTable {
 public:
  JoinTable(const Codec& codec, const BlockShape& shape, std::vector<std::byte>& bytes)
      : codec_(codec), shape_(shape), sizes_(shape), bytes_(bytes) {}

  // The next layer, whose payload begins at `at`.
  absl::Status Add(std::span<const std::uint32_t> plane_bytes, std::size_t at,
                   CodecScratch& scratch) {
    ASSIGN_OR_RETURN(const bool raw, IsRawLayer(codec_, shape_, plane_bytes));
    if (raw) {
      for (std::int32_t i = 0; i < UnitsOf(shape_); ++i) {
        units_.push_back({.rest = at + UnitOf(shape_, i).offset});
      }
      return absl::OkStatus();
    }
    std::size_t codes_at = at + sizes_.values;
    const std::size_t firsts_at = codes_at + plane_bytes[kCodes];
    const std::size_t escapes_at = firsts_at + plane_bytes[kFirsts];
    ASSIGN_OR_RETURN(const std::byte* codes,
                     CodesOf(codec_, {bytes_.data() + codes_at, plane_bytes[kCodes]},
                             sizes_.code_bytes, scratch));
    if (codes != bytes_.data() + codes_at) {
      codes_at = bytes_.size();
      bytes_.insert(bytes_.end(), codes, codes + sizes_.code_bytes);
    }
    const std::byte* const payload = bytes_.data();
    UnitParts parts(codec_, {payload + firsts_at, plane_bytes[kFirsts]},
                    {payload + escapes_at, plane_bytes[kEscapes]});
    const KvDtype dtype = kernels::KvHalfType(shape_.dtype);
    std::size_t value = 0;
    for (std::int32_t i = 0; i < UnitsOf(shape_); ++i) {
      const KvUnit unit = UnitOf(shape_, i);
      const std::size_t n = ValuesOf(shape_, unit);
      const std::size_t unit_codes = codes_at + kernels::KvCodeBytes(dtype, value);
      ASSIGN_OR_RETURN(const std::span<const std::byte> firsts, parts.NextFirsts(unit.dim));
      const std::size_t escapes = kernels::CountEscapes(dtype, payload + unit_codes, n);
      units_.push_back({.rest = at + value,
                        .codes = unit_codes,
                        .firsts = static_cast<std::size_t>(firsts.data() - payload),
                        .escapes = static_cast<std::size_t>(parts.escapes().data() - payload),
                        .halves = escapes_at + plane_bytes[kEscapes] + 2 * value,
                        .escape_count = static_cast<std::uint32_t>(escapes),
                        .kind = firsts.size() > 1 ? KvJoinUnit::kByColumn : KvJoinUnit::kOneFirst});
      RETURN_IF_ERROR(parts.TakeEscapes(escapes));
      value += n;
    }
    return parts.CheckAllRead();
  }

  void Finish() {
    bytes_.resize((bytes_.size() + 15) / 16 * 16);
    const auto* const table = reinterpret_cast<const std::byte*>(units_.data());
    bytes_.insert(bytes_.end(), table, table + units_.size() * sizeof(KvJoinUnit));
  }

 private:
  const Codec& codec_;
  const BlockShape& shape_;
  const PlaneSizes sizes_;
  std::vector<std::byte>& bytes_;
  std::vector<KvJoinUnit> units_;
};

}  // namespace

void EncodeSplitLayer(const Codec& codec, const PageLayout& layout, std::int32_t layer,
                      const std::byte* split, CodecScratch& scratch, std::byte* out,
                      std::span<std::uint32_t> plane_bytes) {
  const KvSplitBlock block(layout);
  const auto l = static_cast<std::size_t>(layer);
  const std::byte* const from = split + l * block.layer_bytes();
  std::memcpy(out, from, block.values);
  std::byte* to = out + block.values;
  std::size_t code_bytes = block.code_bytes;
  if (codec.id() == CodecId::kPlanesZstd) {
    code_bytes = CompressCodes(from + block.values, code_bytes, scratch, to);
  } else {
    std::memcpy(to, from + block.values, code_bytes);
  }
  to += code_bytes;
  const auto for_each = [&](const auto& with) {
    for (std::size_t head = 0; head < block.heads; ++head) {
      for (const bool keys : {true, false}) {
        with(split + block.TailAt(l, head, keys), block.DimOf(keys),
             EscapesOf(block, split, l, head, keys));
      }
    }
  };
  std::byte* const firsts = to;
  for_each([&](const std::byte* tail, std::size_t dim, std::uint32_t) {
    const std::size_t bytes = tail[0] == kernels::kKvByColumn ? 1 + dim : 1;
    std::memcpy(to, tail, bytes);
    to += bytes;
  });
  std::byte* const escapes = to;
  for_each([&](const std::byte* tail, std::size_t dim, std::uint32_t count) {
    std::memcpy(to, tail + 1 + dim, count);
    to += count;
  });
  std::memcpy(to, from + block.values + block.code_bytes, block.half_bytes());
  const std::size_t lengths[kPlanesPlanes] = {
      block.values, code_bytes, static_cast<std::size_t>(escapes - firsts),
      static_cast<std::size_t>(to - escapes), block.half_bytes()};
  for (std::size_t p = 0; p < kPlanesPlanes; ++p) {
    plane_bytes[p] = static_cast<std::uint32_t>(lengths[p]);
  }
  // Blocks of 8 tokens with as many escapes, and firsts of all columns, are still shorter.
  CHECK_LT(static_cast<std::size_t>(to - out) + block.half_bytes(), ShapeOf(layout).layer_bytes());
}

absl::StatusOr<kernels::EncodedBlock> EncodedOf(const FrameHeader& header, const PageLayout& layout,
                                                CodecScratch& scratch,
                                                std::vector<std::byte> payload) {
  const BlockShape shape = ShapeOf(layout);
  if (header.shape != shape) {
    return absl::FailedPreconditionError("a frame of another shape than the slab it is for");
  }
  RETURN_IF_ERROR(CheckReads(header));
  CHECK_EQ(payload.size(), header.payload_bytes());
  const std::optional<kernels::KvEncoding> encoding = EncodingOf(header.codec);
  CHECK(encoding.has_value() && kernels::OpsEncode(layout));
  JoinTable table(CodecOf(header.codec), shape, payload);
  std::size_t at = 0;
  for (std::int32_t layer = 0; layer < shape.cache_layers; ++layer) {
    const std::span<const std::uint32_t> planes = header.PlanesOf(layer);
    RETURN_IF_ERROR(encoding->lossless
                        ? table.Add(planes, at, scratch)
                        : CheckQuantLayer(header.codec, shape, planes, payload.data() + at));
    at += static_cast<std::size_t>(header.LayerBytes(layer));
  }
  if (encoding->lossless) table.Finish();
  return kernels::EncodedBlock{.encoding = *encoding, .bytes = std::move(payload)};
}

}  // namespace penstock::kvstore
