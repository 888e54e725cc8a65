// SPDX-License-Identifier: Apache-2.0
// int8, k8v4, kivi4, kivi2: a layer is as kernels/kv_encoding.h has it.
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/kv_encoding.h"
#include "kvstore/codecs/codecs.h"

namespace penstock::kvstore {
namespace {

using kernels::KvEncoding;
using kernels::KvPlanes;
using kernels::KvQuantWay;

constexpr std::int32_t kPlanes = 4;
constexpr std::string_view kQuantPlaneNames[kPlanes] = {"key codes", "key ranges", "value codes",
                                                        "value ranges"};

class QuantCodec final : public Codec {
 public:
  QuantCodec(CodecId id, const KvEncoding& encoding) : id_(id), encoding_(encoding) {}
  CodecId id() const override { return id_; }
  std::uint8_t version() const override { return 1; }
  std::int32_t planes() const override { return kPlanes; }

  std::size_t LayerBytesMax(const BlockShape& shape) const override {
    return PlanesOf(shape).layer_bytes();
  }

  absl::Status EncodeLayer(const BlockShape& shape, const std::byte* layer, CodecScratch&,
                           std::byte* out, std::span<std::uint32_t> plane_bytes) const override {
    RETURN_IF_ERROR(CheckMagnitude(*this, shape, layer));
    const KvPlanes planes = PlanesOf(shape);
    for (std::size_t p = 0; p < kPlanes; ++p) {
      plane_bytes[p] = static_cast<std::uint32_t>(planes.bytes[p]);
    }
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = UnitOf(shape, i);
      kernels::EncodeMatrix(WayOf(unit), MatrixOf(shape, unit), layer + unit.offset,
                            out + planes.CodesAt(unit.keys, i / 2),
                            out + planes.RangesAt(unit.keys, i / 2));
    }
    return absl::OkStatus();
  }

  absl::Status DecodeLayer(const BlockShape& shape, std::span<const std::uint32_t> plane_bytes,
                           const std::byte* in, CodecScratch&, std::byte* layer) const override {
    RETURN_IF_ERROR(CheckLayer(shape, plane_bytes, in));
    const KvPlanes planes = PlanesOf(shape);
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = UnitOf(shape, i);
      kernels::DecodeMatrix(WayOf(unit), MatrixOf(shape, unit),
                            in + planes.CodesAt(unit.keys, i / 2),
                            in + planes.RangesAt(unit.keys, i / 2), layer + unit.offset);
    }
    return absl::OkStatus();
  }

  absl::Status CheckLayer(const BlockShape& shape, std::span<const std::uint32_t> plane_bytes,
                          const std::byte* in) const {
    const KvPlanes planes = PlanesOf(shape);
    std::size_t at = 0;
    for (std::size_t p = 0; p < kPlanes; ++p) {
      RETURN_IF_ERROR(CheckPlane(*this, kQuantPlaneNames[p], plane_bytes[p], planes.bytes[p]));
      if (p % 2 == 1 && HasNonFinite(in + at, planes.bytes[p])) {
        return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(id_)), ": plane ",
                                                       ToAbsl(kQuantPlaneNames[p]),
                                                       " has one that is not finite"));
      }
      at += planes.bytes[p];
    }
    return absl::OkStatus();
  }

  const KvEncoding& encoding() const { return encoding_; }

 private:
  static kernels::KvMatrix MatrixOf(const BlockShape& shape, const KvUnit& unit) {
    return {shape.dtype, shape.block_tokens, unit.dim};
  }
  const KvQuantWay& WayOf(const KvUnit& unit) const {
    return unit.keys ? encoding_.keys : encoding_.values;
  }
  KvPlanes PlanesOf(const BlockShape& shape) const {
    return {encoding_, kernels::KvMatrix{shape.dtype, shape.block_tokens, shape.k_dim},
            kernels::KvMatrix{shape.dtype, shape.block_tokens, shape.v_dim}, shape.kv_heads};
  }

  const CodecId id_;
  const KvEncoding encoding_;
};

constexpr KvQuantWay kInt8 = {KvQuantWay::kInt8Rows, 8};
constexpr KvQuantWay kGroups4 = {KvQuantWay::kGroups, 4};

const QuantCodec& Quant(CodecId id) {
  static const QuantCodec int8(CodecId::kInt8, {kInt8, kInt8});
  static const QuantCodec k8v4(CodecId::kK8v4, {kInt8, kGroups4});
  static const QuantCodec kivi4(CodecId::kKivi4, {{KvQuantWay::kChannels, 4}, kGroups4});
  static const QuantCodec kivi2(CodecId::kKivi2,
                                {{KvQuantWay::kChannels, 2}, {KvQuantWay::kGroups, 2}});
  switch (id) {
    case CodecId::kInt8:
      return int8;
    case CodecId::kK8v4:
      return k8v4;
    case CodecId::kKivi4:
      return kivi4;
    default:
      CHECK(id == CodecId::kKivi2);
      return kivi2;
  }
}

}  // namespace

const Codec& Int8Codec() { return Quant(CodecId::kInt8); }
const Codec& K8v4Codec() { return Quant(CodecId::kK8v4); }
const Codec& Kivi4Codec() { return Quant(CodecId::kKivi4); }
const Codec& Kivi2Codec() { return Quant(CodecId::kKivi2); }

absl::Status CheckQuantLayer(CodecId id, const BlockShape& shape,
                             std::span<const std::uint32_t> plane_bytes, const std::byte* in) {
  return Quant(id).CheckLayer(shape, plane_bytes, in);
}

std::optional<KvEncoding> EncodingOf(CodecId id) {
  switch (id) {
    case CodecId::kPlanes:
    case CodecId::kPlanesZstd:
      return KvEncoding{.lossless = true};
    case CodecId::kInt8:
    case CodecId::kK8v4:
    case CodecId::kKivi4:
    case CodecId::kKivi2:
      return Quant(id).encoding();
    default:
      return std::nullopt;
  }
}

}  // namespace penstock::kvstore
