// SPDX-License-Identifier: Apache-2.0
// planes and planes+zstd, on kernels/kv_codec_planes.h. Of F32 the upper halves are BF16, and the
// lower ones stay as they are. Five planes, in each all units of the layer behind each other:
//   rest     a byte per value
//   codes    KvCodeBytes; with zstd compressed where that makes it shorter
//   firsts   of a unit one byte, or 0xFF and one per column
//   escapes  exponents without a code, a byte each
//   halves   of F32, the lower ones
// A layer that this would make no shorter is as it was in the first plane, and the others are empty.
#include <zstd.h>

#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "kernels/kv_codec_planes.h"
#include "kernels/kv_split.h"
#include "kvstore/codecs/codecs.h"
#include "kvstore/codecs/planes_parts.h"

namespace penstock::kvstore {

struct CodecScratch::Zstd {
  Zstd() : compress(ZSTD_createCCtx()), decompress(ZSTD_createDCtx()) {
    CHECK(compress != nullptr && decompress != nullptr);
  }
  ~Zstd() {
    ZSTD_freeCCtx(compress);
    ZSTD_freeDCtx(decompress);
  }
  ZSTD_CCtx* const compress;
  ZSTD_DCtx* const decompress;
};

CodecScratch::CodecScratch() : zstd_(std::make_unique<Zstd>()) {}
CodecScratch::~CodecScratch() = default;

namespace {

// Only entropy coding gains anything, which the fastest level that does it does as well as others.
constexpr int kZstdLevel = 1;

}  // namespace

PlaneSizes::PlaneSizes(const BlockShape& shape)
    : values(shape.layer_bytes() / BytesPerElement(shape.dtype)),
      code_bytes(kernels::KvCodeBytes(kernels::KvHalfType(shape.dtype), values)),
      firsts_max(static_cast<std::size_t>(shape.kv_heads) *
                 static_cast<std::size_t>(2 + shape.k_dim + shape.v_dim)),
      half_bytes(shape.dtype == KvDtype::kF32 ? 2 * values : 0) {}

std::size_t CompressCodes(const std::byte* from, std::size_t bytes, CodecScratch& scratch,
                          std::byte* to) {
  const std::size_t got =
      ZSTD_compressCCtx(scratch.zstd().compress, to, bytes, from, bytes, kZstdLevel);
  if (ZSTD_isError(got) == 0 && got < bytes) return got;
  std::memcpy(to, from, bytes);
  return bytes;
}

absl::StatusOr<const std::byte*> CodesOf(const Codec& codec, std::span<const std::byte> packed,
                                         std::size_t code_bytes, CodecScratch& scratch) {
  if (packed.size() == code_bytes) return packed.data();
  if (codec.id() != CodecId::kPlanesZstd || packed.size() > code_bytes) {
    return CheckPlane(codec, kPlaneNames[kCodes], packed.size(), code_bytes);
  }
  std::byte* const codes = scratch.Room(CodecScratch::kCodes, code_bytes);
  const std::size_t got = ZSTD_decompressDCtx(scratch.zstd().decompress, codes, code_bytes,
                                              packed.data(), packed.size());
  if (ZSTD_isError(got) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(codec.id())),
                                                   ": plane codes: ", ZSTD_getErrorName(got)));
  }
  RETURN_IF_ERROR(CheckPlane(codec, kPlaneNames[kCodes], got, code_bytes));
  return codes;
}

absl::StatusOr<bool> IsRawLayer(const Codec& codec, const BlockShape& shape,
                                std::span<const std::uint32_t> plane_bytes) {
  const PlaneSizes s(shape);
  if (plane_bytes[kRest] == shape.layer_bytes()) {
    for (const std::size_t p : {kCodes, kFirsts, kEscapes, kHalves}) {
      RETURN_IF_ERROR(CheckPlane(codec, kPlaneNames[p], plane_bytes[p], 0));
    }
    return true;
  }
  RETURN_IF_ERROR(CheckPlane(codec, kPlaneNames[kRest], plane_bytes[kRest], s.values));
  RETURN_IF_ERROR(CheckPlane(codec, kPlaneNames[kHalves], plane_bytes[kHalves], s.half_bytes));
  return false;
}

absl::StatusOr<std::span<const std::byte>> UnitParts::NextFirsts(std::int32_t dim) {
  const bool by_column = !firsts_.empty() && firsts_[0] == kernels::kKvByColumn;
  const std::size_t need = by_column ? 1 + static_cast<std::size_t>(dim) : 1;
  if (firsts_.size() < need) return TooShort(kFirsts, firsts_bytes_);
  const std::span<const std::byte> own = firsts_.first(need);
  firsts_ = firsts_.subspan(need);
  return own;
}

absl::Status UnitParts::TakeEscapes(std::size_t count) {
  if (count > escapes_.size()) return TooShort(kEscapes, escapes_bytes_);
  escapes_ = escapes_.subspan(count);
  ++unit_;
  return absl::OkStatus();
}

absl::Status UnitParts::CheckAllRead() const {
  RETURN_IF_ERROR(
      CheckPlane(codec_, kPlaneNames[kFirsts], firsts_bytes_, firsts_bytes_ - firsts_.size()));
  return CheckPlane(codec_, kPlaneNames[kEscapes], escapes_bytes_,
                    escapes_bytes_ - escapes_.size());
}

absl::Status UnitParts::TooShort(PlaneIndex plane, std::size_t bytes) const {
  return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(codec_.id())),
                                                 ": plane ", ToAbsl(kPlaneNames[plane]), " of ",
                                                 bytes, " bytes ends in unit ", unit_));
}

namespace {

class PlanesCodecOf final : public Codec {
 public:
  PlanesCodecOf(CodecId id, bool zstd) : id_(id), zstd_(zstd) {}
  CodecId id() const override { return id_; }
  std::uint8_t version() const override { return 1; }
  std::int32_t planes() const override { return kPlanesPlanes; }

  std::size_t LayerBytesMax(const BlockShape& shape) const override {
    const PlaneSizes s(shape);
    return s.values + s.code_bytes + s.firsts_max + s.values + s.half_bytes;
  }

  absl::Status EncodeLayer(const BlockShape& shape, const std::byte* layer, CodecScratch& scratch,
                           std::byte* out, std::span<std::uint32_t> plane_bytes) const override {
    const PlaneSizes s(shape);
    const std::byte* halves = layer;
    if (s.half_bytes > 0) halves = UpperHalves(layer, s.values, scratch);
    std::byte* const codes =
        zstd_ ? scratch.Room(CodecScratch::kCodes, s.code_bytes) : out + s.values;
    std::byte* const firsts = scratch.Room(CodecScratch::kFirsts, s.firsts_max);
    std::byte* const escapes = scratch.Room(CodecScratch::kEscapes, s.values);
    const Written written = SplitUnits(shape, halves, out, codes, firsts, escapes);
    std::size_t code_bytes = s.code_bytes;
    if (zstd_) code_bytes = CompressCodes(codes, s.code_bytes, scratch, out + s.values);
    std::byte* to = out + s.values + code_bytes;
    std::memcpy(to, firsts, written.firsts);
    std::memcpy(to + written.firsts, escapes, written.escapes);
    to += written.firsts + written.escapes;
    if (s.half_bytes > 0) LowerHalves(layer, s.values, to);
    const std::size_t lengths[kPlanesPlanes] = {s.values, code_bytes, written.firsts,
                                                written.escapes, s.half_bytes};
    const auto bytes = static_cast<std::size_t>(to - out) + s.half_bytes;
    const bool raw = bytes >= shape.layer_bytes();
    if (raw) std::memcpy(out, layer, shape.layer_bytes());
    for (std::size_t p = 0; p < kPlanesPlanes; ++p) {
      plane_bytes[p] = static_cast<std::uint32_t>(raw ? 0 : lengths[p]);
    }
    if (raw) plane_bytes[kRest] = static_cast<std::uint32_t>(shape.layer_bytes());
    return absl::OkStatus();
  }

  absl::Status DecodeLayer(const BlockShape& shape, std::span<const std::uint32_t> plane_bytes,
                           const std::byte* in, CodecScratch& scratch,
                           std::byte* layer) const override {
    const PlaneSizes s(shape);
    ASSIGN_OR_RETURN(const bool raw, IsRawLayer(*this, shape, plane_bytes));
    if (raw) {
      std::memcpy(layer, in, shape.layer_bytes());
      return absl::OkStatus();
    }
    const std::byte* const packed = in + s.values;
    ASSIGN_OR_RETURN(const std::byte* const codes,
                     CodesOf(*this, {packed, plane_bytes[kCodes]}, s.code_bytes, scratch));
    const std::span firsts(packed + plane_bytes[kCodes], plane_bytes[kFirsts]);
    const std::span escapes(firsts.data() + firsts.size(), plane_bytes[kEscapes]);
    std::byte* halves = layer;
    if (s.half_bytes > 0) halves = scratch.Room(CodecScratch::kHalves, 2 * s.values);
    RETURN_IF_ERROR(JoinUnits(shape, in, codes, firsts, escapes, halves));
    if (s.half_bytes > 0) {
      Interleave(halves, escapes.data() + escapes.size(), s.values, layer);
    }
    return absl::OkStatus();
  }

 private:
  struct Written {
    std::size_t firsts, escapes;
  };

  static Written SplitUnits(const BlockShape& shape, const std::byte* halves, std::byte* rest,
                            std::byte* codes, std::byte* firsts, std::byte* escapes) {
    const KvDtype dtype = kernels::KvHalfType(shape.dtype);
    Written written{0, 0};
    std::size_t at = 0;
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = UnitOf(shape, i);
      const kernels::KvUnitSplit split =
          kernels::SplitUnit(dtype, shape.block_tokens, unit.dim, halves + 2 * at, rest + at,
                             codes + kernels::KvCodeBytes(dtype, at), firsts + written.firsts,
                             escapes + written.escapes);
      written.firsts += split.firsts_bytes;
      written.escapes += split.escapes;
      at += ValuesOf(shape, unit);
    }
    return written;
  }

  absl::Status JoinUnits(const BlockShape& shape, const std::byte* rest, const std::byte* codes,
                         std::span<const std::byte> firsts, std::span<const std::byte> escapes,
                         std::byte* halves) const {
    const KvDtype dtype = kernels::KvHalfType(shape.dtype);
    UnitParts parts(*this, firsts, escapes);
    std::size_t at = 0;
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = UnitOf(shape, i);
      ASSIGN_OR_RETURN(const std::span<const std::byte> own, parts.NextFirsts(unit.dim));
      const std::size_t used = kernels::JoinUnit(
          dtype, shape.block_tokens, unit.dim, rest + at, codes + kernels::KvCodeBytes(dtype, at),
          own.data(), parts.escapes().data(), parts.escapes().size(), halves + 2 * at);
      RETURN_IF_ERROR(parts.TakeEscapes(used));
      at += ValuesOf(shape, unit);
    }
    return parts.CheckAllRead();
  }

  static const std::byte* UpperHalves(const std::byte* layer, std::size_t values,
                                      CodecScratch& scratch) {
    std::byte* const halves = scratch.Room(CodecScratch::kHalves, 2 * values);
    for (std::size_t i = 0; i < values; ++i) std::memcpy(halves + 2 * i, layer + 4 * i + 2, 2);
    return halves;
  }
  static void LowerHalves(const std::byte* layer, std::size_t values, std::byte* to) {
    for (std::size_t i = 0; i < values; ++i) std::memcpy(to + 2 * i, layer + 4 * i, 2);
  }
  static void Interleave(const std::byte* upper, const std::byte* lower, std::size_t values,
                         std::byte* layer) {
    for (std::size_t i = 0; i < values; ++i) {
      std::memcpy(layer + 4 * i, lower + 2 * i, 2);
      std::memcpy(layer + 4 * i + 2, upper + 2 * i, 2);
    }
  }

  const CodecId id_;
  const bool zstd_;
};

}  // namespace

const Codec& PlanesCodec() {
  static const PlanesCodecOf codec(CodecId::kPlanes, false);
  return codec;
}

const Codec& PlanesZstdCodec() {
  static const PlanesCodecOf codec(CodecId::kPlanesZstd, true);
  return codec;
}

}  // namespace penstock::kvstore
