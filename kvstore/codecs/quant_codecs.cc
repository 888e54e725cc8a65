// SPDX-License-Identifier: Apache-2.0
// int8, k8v4, kivi4, kivi2: keys and values each in one of the ways of kernels/kv_codec_quant.h.
// Four planes: codes of keys, ranges of keys, codes of values, ranges of values, each by head.
// Ranges are scales, then (but for int8) minima, of one head; then those of the next.
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/kv_codec_quant.h"
#include "kvstore/codecs/codecs.h"

namespace penstock::kvstore {
namespace {

constexpr std::int32_t kPlanes = 4;
constexpr std::string_view kPlaneNames[kPlanes] = {"key codes", "key ranges", "value codes",
                                                   "value ranges"};

// How one of K and V is quantized.
struct Way {
  enum Kind { kInt8Rows, kGroups, kChannels } kind;
  int bits;

  std::size_t CodeBytes(const kernels::KvMatrix& m) const {
    return static_cast<std::size_t>(m.rows) * static_cast<std::size_t>(m.dim) *
           static_cast<std::size_t>(bits) / 8;
  }
  std::size_t ScaleBytes(const kernels::KvMatrix& m) const {
    if (kind == kChannels) return 2 * static_cast<std::size_t>(m.dim);
    const auto rows = static_cast<std::size_t>(m.rows);
    return 2 * rows * (kind == kInt8Rows ? 1 : static_cast<std::size_t>(kernels::KvGroups(m.dim)));
  }
  std::size_t RangeBytes(const kernels::KvMatrix& m) const {
    return ScaleBytes(m) * (kind == kInt8Rows ? 1 : 2);
  }
  void Encode(const kernels::KvMatrix& m, const std::byte* x, std::byte* codes,
              std::byte* ranges) const {
    std::byte* const minima = ranges + ScaleBytes(m);
    if (kind == kInt8Rows) return kernels::QuantizeInt8(m, x, codes, ranges);
    if (kind == kGroups) return kernels::QuantizeGroups(bits, m, x, codes, ranges, minima);
    kernels::QuantizeChannels(bits, m, x, codes, ranges, minima);
  }
  void Decode(const kernels::KvMatrix& m, const std::byte* codes, const std::byte* ranges,
              std::byte* x) const {
    const std::byte* const minima = ranges + ScaleBytes(m);
    if (kind == kInt8Rows) return kernels::DequantizeInt8(m, codes, ranges, x);
    if (kind == kGroups) return kernels::DequantizeGroups(bits, m, codes, ranges, minima, x);
    kernels::DequantizeChannels(bits, m, codes, ranges, minima, x);
  }
};

class QuantCodec final : public Codec {
 public:
  QuantCodec(CodecId id, Way keys, Way values) : id_(id), keys_(keys), values_(values) {}
  CodecId id() const override { return id_; }
  std::uint8_t version() const override { return 1; }
  std::int32_t planes() const override { return kPlanes; }

  std::size_t LayerBytesMax(const BlockShape& shape) const override {
    std::size_t bytes = 0;
    for (const std::size_t plane : PlaneBytes(shape).bytes) bytes += plane;
    return bytes;
  }

  absl::Status EncodeLayer(const BlockShape& shape, const std::byte* layer, CodecScratch&,
                           std::byte* out, std::span<std::uint32_t> plane_bytes) const override {
    RETURN_IF_ERROR(CheckMagnitude(*this, shape, layer));
    const Planes planes = PlaneBytes(shape);
    for (std::size_t p = 0; p < kPlanes; ++p) {
      plane_bytes[p] = static_cast<std::uint32_t>(planes.bytes[p]);
    }
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = UnitOf(shape, i);
      const Place place = PlaceOf(shape, planes, unit, i / 2);
      WayOf(unit).Encode(MatrixOf(shape, unit), layer + unit.offset, out + place.codes,
                         out + place.ranges);
    }
    return absl::OkStatus();
  }

  absl::Status DecodeLayer(const BlockShape& shape, std::span<const std::uint32_t> plane_bytes,
                           const std::byte* in, CodecScratch&, std::byte* layer) const override {
    const Planes planes = PlaneBytes(shape);
    std::size_t at = 0;
    for (std::size_t p = 0; p < kPlanes; ++p) {
      RETURN_IF_ERROR(CheckPlane(*this, kPlaneNames[p], plane_bytes[p], planes.bytes[p]));
      if (p % 2 == 1 && HasNonFinite(in + at, planes.bytes[p])) {
        return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(id_)), ": plane ",
                                                       ToAbsl(kPlaneNames[p]),
                                                       " has one that is not finite"));
      }
      at += planes.bytes[p];
    }
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = UnitOf(shape, i);
      const Place place = PlaceOf(shape, planes, unit, i / 2);
      WayOf(unit).Decode(MatrixOf(shape, unit), in + place.codes, in + place.ranges,
                         layer + unit.offset);
    }
    return absl::OkStatus();
  }

 private:
  struct Planes {
    std::size_t bytes[kPlanes];
  };
  struct Place {
    std::size_t codes, ranges;
  };

  static kernels::KvMatrix MatrixOf(const BlockShape& shape, const KvUnit& unit) {
    return {shape.dtype, shape.block_tokens, unit.dim};
  }
  const Way& WayOf(const KvUnit& unit) const { return unit.keys ? keys_ : values_; }
  Planes PlaneBytes(const BlockShape& shape) const {
    const auto heads = static_cast<std::size_t>(shape.kv_heads);
    const kernels::KvMatrix k = {shape.dtype, shape.block_tokens, shape.k_dim};
    const kernels::KvMatrix v = {shape.dtype, shape.block_tokens, shape.v_dim};
    return {{heads * keys_.CodeBytes(k), heads * keys_.RangeBytes(k), heads * values_.CodeBytes(v),
             heads * values_.RangeBytes(v)}};
  }
  // Where in a layer's payload a unit is.
  Place PlaceOf(const BlockShape& shape, const Planes& planes, const KvUnit& unit,
                std::int32_t head) const {
    const kernels::KvMatrix m = MatrixOf(shape, unit);
    const auto h = static_cast<std::size_t>(head);
    const std::size_t begin = unit.keys ? 0 : planes.bytes[0] + planes.bytes[1];
    return {begin + h * WayOf(unit).CodeBytes(m),
            begin + planes.bytes[unit.keys ? 0 : 2] + h * WayOf(unit).RangeBytes(m)};
  }

  const CodecId id_;
  const Way keys_, values_;
};

constexpr Way kInt8{Way::kInt8Rows, 8};

}  // namespace

const Codec& Int8Codec() {
  static const QuantCodec codec(CodecId::kInt8, kInt8, kInt8);
  return codec;
}

const Codec& K8v4Codec() {
  static const QuantCodec codec(CodecId::kK8v4, kInt8, {Way::kGroups, 4});
  return codec;
}

const Codec& Kivi4Codec() {
  static const QuantCodec codec(CodecId::kKivi4, {Way::kChannels, 4}, {Way::kGroups, 4});
  return codec;
}

const Codec& Kivi2Codec() {
  static const QuantCodec codec(CodecId::kKivi2, {Way::kChannels, 2}, {Way::kGroups, 2});
  return codec;
}

}  // namespace penstock::kvstore
