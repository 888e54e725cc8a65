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

#include <array>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/status.h"
#include "kernels/kv_codec_planes.h"
#include "kvstore/codecs/codecs.h"
#include "kvstore/codecs/exponent_choice.h"

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

enum Plane : std::size_t { kRest, kCodes, kFirsts, kEscapes, kHalves };
constexpr std::int32_t kPlanes = 5;
constexpr std::byte kByColumn{0xFF};
// Only entropy coding gains anything, which the fastest level that does it does as well as others.
constexpr int kZstdLevel = 1;

// The firsts of a unit, repeated until they fill whole chunks.
struct Firsts {
  std::array<std::uint8_t, std::size_t{4} * 1024> bytes;
  std::size_t period;

  void One(std::uint8_t first) {
    period = kernels::kKvChunkValues;
    std::memset(bytes.data(), first, period);
  }
  void ByColumn(const std::uint8_t* firsts, std::size_t dim) {
    period = std::lcm(dim, kernels::kKvChunkValues);
    for (std::size_t at = 0; at < period; at += dim) std::memcpy(bytes.data() + at, firsts, dim);
  }
};

class PlanesCodecOf final : public Codec {
 public:
  PlanesCodecOf(CodecId id, bool zstd) : id_(id), zstd_(zstd) {}
  CodecId id() const override { return id_; }
  std::uint8_t version() const override { return 1; }
  std::int32_t planes() const override { return kPlanes; }

  std::size_t LayerBytesMax(const BlockShape& shape) const override {
    const Sizes s(shape);
    return s.values + s.code_bytes + s.firsts_max + s.values + s.half_bytes;
  }

  absl::Status EncodeLayer(const BlockShape& shape, const std::byte* layer, CodecScratch& scratch,
                           std::byte* out, std::span<std::uint32_t> plane_bytes) const override {
    const Sizes s(shape);
    const std::byte* halves = layer;
    if (s.half_bytes > 0) halves = UpperHalves(layer, s.values, scratch);
    std::byte* const codes =
        zstd_ ? scratch.Room(CodecScratch::kCodes, s.code_bytes) : out + s.values;
    std::byte* const firsts = scratch.Room(CodecScratch::kFirsts, s.firsts_max);
    std::byte* const escapes = scratch.Room(CodecScratch::kEscapes, s.values);
    const Written written = SplitUnits(shape, halves, out, codes, firsts, escapes);
    std::size_t code_bytes = s.code_bytes;
    if (zstd_) code_bytes = Compress(codes, s.code_bytes, scratch, out + s.values);
    std::byte* to = out + s.values + code_bytes;
    std::memcpy(to, firsts, written.firsts);
    std::memcpy(to + written.firsts, escapes, written.escapes);
    to += written.firsts + written.escapes;
    if (s.half_bytes > 0) LowerHalves(layer, s.values, to);
    const std::size_t lengths[kPlanes] = {s.values, code_bytes, written.firsts, written.escapes,
                                          s.half_bytes};
    const auto bytes = static_cast<std::size_t>(to - out) + s.half_bytes;
    const bool raw = bytes >= shape.layer_bytes();
    if (raw) std::memcpy(out, layer, shape.layer_bytes());
    for (std::size_t p = 0; p < kPlanes; ++p) {
      plane_bytes[p] = static_cast<std::uint32_t>(raw ? 0 : lengths[p]);
    }
    if (raw) plane_bytes[kRest] = static_cast<std::uint32_t>(shape.layer_bytes());
    return absl::OkStatus();
  }

  absl::Status DecodeLayer(const BlockShape& shape, std::span<const std::uint32_t> plane_bytes,
                           const std::byte* in, CodecScratch& scratch,
                           std::byte* layer) const override {
    const Sizes s(shape);
    if (plane_bytes[kRest] == shape.layer_bytes()) {
      for (const std::size_t p : {kCodes, kFirsts, kEscapes, kHalves}) {
        RETURN_IF_ERROR(CheckPlane(*this, kNames[p], plane_bytes[p], 0));
      }
      std::memcpy(layer, in, shape.layer_bytes());
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(CheckPlane(*this, kNames[kRest], plane_bytes[kRest], s.values));
    RETURN_IF_ERROR(CheckPlane(*this, kNames[kHalves], plane_bytes[kHalves], s.half_bytes));
    const std::byte* const packed = in + s.values;
    ASSIGN_OR_RETURN(const std::byte* const codes,
                     CodesOf(packed, plane_bytes[kCodes], s.code_bytes, scratch));
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
  static constexpr std::string_view kNames[kPlanes] = {"rest", "codes", "firsts", "escapes",
                                                       "halves"};
  // Of a layer.
  struct Sizes {
    explicit Sizes(const BlockShape& shape)
        : values(shape.layer_bytes() / BytesPerElement(shape.dtype)),
          code_bytes(kernels::KvCodeBytes(HalfType(shape), values)),
          firsts_max(static_cast<std::size_t>(shape.kv_heads) *
                     static_cast<std::size_t>(2 + shape.k_dim + shape.v_dim)),
          half_bytes(shape.dtype == KvDtype::kF32 ? 2 * values : 0) {}
    std::size_t values, code_bytes, firsts_max, half_bytes;
  };
  struct Written {
    std::size_t firsts, escapes;
  };

  // What a unit is taken apart as.
  static KvDtype HalfType(const BlockShape& shape) {
    return shape.dtype == KvDtype::kF16 ? KvDtype::kF16 : KvDtype::kBF16;
  }
  static std::size_t ValuesOf(const BlockShape& shape, const KvUnit& unit) {
    return static_cast<std::size_t>(shape.block_tokens) * static_cast<std::size_t>(unit.dim);
  }

  static Written SplitUnits(const BlockShape& shape, const std::byte* halves, std::byte* rest,
                            std::byte* codes, std::byte* firsts, std::byte* escapes) {
    const KvDtype dtype = HalfType(shape);
    Written written{0, 0};
    std::size_t at = 0;
    Firsts pattern;
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = UnitOf(shape, i);
      const std::size_t n = ValuesOf(shape, unit);
      const auto dim = static_cast<std::size_t>(unit.dim);
      const std::byte* const x = halves + 2 * at;
      std::byte* const unit_codes = codes + kernels::KvCodeBytes(dtype, at);
      std::byte* const unit_escapes = escapes + written.escapes;
      const auto split = [&] {
        return kernels::SplitExponents({dtype, n, pattern.bytes.data(), pattern.period}, x,
                                       rest + at, unit_codes, unit_escapes);
      };
      const ExponentChoice choice = ChooseFirst(dtype, x, n);
      std::size_t first_bytes = 1 + dim;
      std::size_t escaped = SIZE_MAX;
      // By column some 1 in 64 escapes, too: worth a try from there on.
      if (choice.escapes > dim + n / 64) {
        std::array<std::uint8_t, 1024> columns;
        ChooseFirsts(dtype, x, shape.block_tokens, unit.dim, columns.data());
        pattern.ByColumn(columns.data(), dim);
        escaped = split();
        firsts[written.firsts] = kByColumn;
        std::memcpy(firsts + written.firsts + 1, columns.data(), dim);
      }
      if (escaped == SIZE_MAX || escaped + dim > choice.escapes) {
        first_bytes = 1;
        pattern.One(choice.first);
        escaped = split();
        firsts[written.firsts] = static_cast<std::byte>(choice.first);
      }
      written.firsts += first_bytes;
      written.escapes += escaped;
      at += n;
    }
    return written;
  }

  absl::Status JoinUnits(const BlockShape& shape, const std::byte* rest, const std::byte* codes,
                         std::span<const std::byte> firsts, std::span<const std::byte> escapes,
                         std::byte* halves) const {
    const KvDtype dtype = HalfType(shape);
    const std::size_t firsts_bytes = firsts.size();
    const std::size_t escapes_bytes = escapes.size();
    std::size_t at = 0;
    Firsts pattern;
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = UnitOf(shape, i);
      const std::size_t n = ValuesOf(shape, unit);
      const auto dim = static_cast<std::size_t>(unit.dim);
      const std::size_t need = !firsts.empty() && firsts[0] == kByColumn ? 1 + dim : 1;
      if (firsts.size() < need) return TooShort("firsts", firsts_bytes, i);
      if (need == 1) {
        pattern.One(static_cast<std::uint8_t>(firsts[0]));
      } else {
        pattern.ByColumn(reinterpret_cast<const std::uint8_t*>(firsts.data() + 1), dim);
      }
      firsts = firsts.subspan(need);
      const std::size_t used = kernels::JoinExponents(
          {dtype, n, pattern.bytes.data(), pattern.period}, rest + at,
          codes + kernels::KvCodeBytes(dtype, at), escapes.data(), escapes.size(), halves + 2 * at);
      if (used > escapes.size()) return TooShort("escapes", escapes_bytes, i);
      escapes = escapes.subspan(used);
      at += n;
    }
    RETURN_IF_ERROR(CheckPlane(*this, kNames[kFirsts], firsts_bytes, firsts_bytes - firsts.size()));
    return CheckPlane(*this, kNames[kEscapes], escapes_bytes, escapes_bytes - escapes.size());
  }

  absl::Status TooShort(std::string_view plane, std::size_t bytes, std::int32_t unit) const {
    return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(id_)), ": plane ",
                                                   ToAbsl(plane), " of ", bytes,
                                                   " bytes ends in unit ", unit));
  }

  // Writes `bytes` bytes or fewer, and says how many.
  static std::size_t Compress(const std::byte* from, std::size_t bytes, CodecScratch& scratch,
                              std::byte* to) {
    const std::size_t got =
        ZSTD_compressCCtx(scratch.zstd().compress, to, bytes, from, bytes, kZstdLevel);
    if (ZSTD_isError(got) == 0 && got < bytes) return got;
    std::memcpy(to, from, bytes);
    return bytes;
  }

  absl::StatusOr<const std::byte*> CodesOf(const std::byte* packed, std::size_t packed_bytes,
                                           std::size_t code_bytes, CodecScratch& scratch) const {
    if (packed_bytes == code_bytes) return packed;
    if (!zstd_ || packed_bytes > code_bytes) {
      return CheckPlane(*this, kNames[kCodes], packed_bytes, code_bytes);
    }
    std::byte* const codes = scratch.Room(CodecScratch::kCodes, code_bytes);
    const std::size_t got =
        ZSTD_decompressDCtx(scratch.zstd().decompress, codes, code_bytes, packed, packed_bytes);
    if (ZSTD_isError(got) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("codec ", ToAbsl(ToString(id_)), ": plane codes: ", ZSTD_getErrorName(got)));
    }
    RETURN_IF_ERROR(CheckPlane(*this, kNames[kCodes], got, code_bytes));
    return codes;
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
