// SPDX-License-Identifier: Apache-2.0
// ans-fine, ans-medium, ans-coarse: keys and values in even steps (kernels/kv_codec_steps.h), their
// codes entropy coded by static tables (kernels/kv_codec_ans.h). Three planes, in each first the
// keys of every head, then the values:
//   ranges  of keys: the step, then an offset per column; of values: a step per token; then of
//           both the classes of columns, two to a byte, the first in the low half
//   codes   the 32 states, and the words
//   wides   codes of columns of the last class, column after column
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/kv_codec_steps.h"
#include "kvstore/codecs/ans_tables.h"
#include "kvstore/codecs/codecs.h"

namespace penstock::kvstore {
namespace {

using kernels::KvAnsStates;
using kernels::KvMatrix;

constexpr std::size_t kStatesBytes = sizeof(KvAnsStates);
static_assert(kStatesBytes == 128);

// Units in the order of planes: those of a layer are head by head, keys and values in turn.
KvUnit AnsUnit(const BlockShape& shape, std::int32_t i) {
  return UnitOf(shape, i < shape.kv_heads ? 2 * i : 2 * (i - shape.kv_heads) + 1);
}

KvMatrix MatrixOf(const BlockShape& shape, const KvUnit& unit) {
  return {shape.dtype, shape.block_tokens, unit.dim};
}

std::size_t Values(const KvMatrix& m) {
  return static_cast<std::size_t>(m.rows) * static_cast<std::size_t>(m.dim);
}

std::size_t StepBytes(const KvUnit& unit, const KvMatrix& m) {
  return unit.keys ? 2 : static_cast<std::size_t>(m.rows);
}
std::size_t OffsetBytes(const KvUnit& unit) {
  return unit.keys ? static_cast<std::size_t>(unit.dim) : 0;
}
std::size_t RangeBytes(const KvUnit& unit, const KvMatrix& m) {
  return StepBytes(unit, m) + OffsetBytes(unit) + static_cast<std::size_t>(unit.dim) / 2;
}
std::size_t RangesBytes(const BlockShape& shape) {
  std::size_t bytes = 0;
  for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
    const KvUnit unit = AnsUnit(shape, i);
    bytes += RangeBytes(unit, MatrixOf(shape, unit));
  }
  return bytes;
}
std::size_t LayerValues(const BlockShape& shape) {
  return shape.layer_bytes() / BytesPerElement(shape.dtype);
}

bool StepsAreFinite(const KvUnit& unit, std::span<const std::byte> steps) {
  if (unit.keys) return !HasNonFinite(steps.data(), steps.size());
  return std::ranges::all_of(
      steps, [](std::byte step) { return step <= std::byte{kernels::kKvStepByteMax}; });
}

// Calls with(column) for those of the last class.
template <typename With>
void ForWides(const KvUnit& unit, const std::uint8_t* classes, With with) {
  for (std::size_t c = 0; c < static_cast<std::size_t>(unit.dim); ++c) {
    if (classes[c] % kAnsClasses == kAnsWide) with(c);
  }
}

// What is known of every unit of a layer between the planes and the values.
struct Coded {
  Coded(const BlockShape& shape, CodecScratch& scratch)
      : codes(reinterpret_cast<std::int16_t*>(
            scratch.Room(CodecScratch::kCodes, LayerValues(shape) * sizeof(std::int16_t)))),
        classes(reinterpret_cast<std::uint8_t*>(
            scratch.Room(CodecScratch::kFirsts,
                         LayerValues(shape) / static_cast<std::size_t>(shape.block_tokens)))) {}
  std::int16_t* codes;    // Of all units, one behind the other.
  std::uint8_t* classes;  // Of all their columns; those of values from kAnsClasses on.
};

class AnsCodec final : public Codec {
 public:
  explicit AnsCodec(CodecId id) : id_(id), level_(AnsLevelOf(id)) {}
  CodecId id() const override { return id_; }
  std::uint8_t version() const override { return 1; }
  std::int32_t planes() const override { return 3; }

  std::size_t LayerBytesMax(const BlockShape& shape) const override {
    // A word of each code at most, or the code itself.
    return RangesBytes(shape) + kStatesBytes + 2 * LayerValues(shape);
  }

  absl::Status EncodeLayer(const BlockShape& shape, const std::byte* layer, CodecScratch& scratch,
                           std::byte* out, std::span<std::uint32_t> plane_bytes) const override {
    RETURN_IF_ERROR(CheckMagnitude(*this, shape, layer));
    const Coded coded(shape, scratch);
    const std::size_t ranges_bytes = QuantizeUnits(shape, layer, coded, out);
    const std::size_t codes_bytes = PutCodes(shape, coded, scratch, out + ranges_bytes);
    const std::size_t wides_bytes = PutWides(shape, coded, out + ranges_bytes + codes_bytes);
    plane_bytes[0] = static_cast<std::uint32_t>(ranges_bytes);
    plane_bytes[1] = static_cast<std::uint32_t>(codes_bytes);
    plane_bytes[2] = static_cast<std::uint32_t>(wides_bytes);
    return absl::OkStatus();
  }

  absl::Status DecodeLayer(const BlockShape& shape, std::span<const std::uint32_t> plane_bytes,
                           const std::byte* in, CodecScratch& scratch,
                           std::byte* layer) const override {
    const std::size_t ranges_bytes = RangesBytes(shape);
    RETURN_IF_ERROR(CheckPlane(*this, "ranges", plane_bytes[0], ranges_bytes));
    const Coded coded(shape, scratch);
    RETURN_IF_ERROR(TakeRanges(shape, in, coded));
    RETURN_IF_ERROR(TakeCodes(shape, in + ranges_bytes, plane_bytes[1], coded));
    RETURN_IF_ERROR(TakeWides(shape, in + ranges_bytes + plane_bytes[1], plane_bytes[2], coded));
    DequantizeUnits(shape, in, coded, layer);
    return absl::OkStatus();
  }

 private:
  // Calls with(unit, matrix, where its ranges are in their plane, its codes, its classes) for every
  // unit.
  template <typename With>
  static void ForUnits(const BlockShape& shape, const Coded& coded, With with) {
    std::size_t range_at = 0;
    std::int16_t* codes = coded.codes;
    std::uint8_t* classes = coded.classes;
    for (std::int32_t i = 0; i < UnitsOf(shape); ++i) {
      const KvUnit unit = AnsUnit(shape, i);
      const KvMatrix m = MatrixOf(shape, unit);
      with(unit, m, range_at, codes, classes);
      range_at += RangeBytes(unit, m);
      codes += Values(m);
      classes += unit.dim;
    }
  }

  // Writes the plane of ranges and returns its length; codes and classes go to `coded`.
  std::size_t QuantizeUnits(const BlockShape& shape, const std::byte* layer, const Coded& coded,
                            std::byte* out) const {
    std::array<std::int32_t, kernels::kKvStepDimMax> tops;
    ForUnits(shape, coded,
             [&](const KvUnit& unit, const KvMatrix& m, std::size_t range_at, std::int16_t* codes,
                 std::uint8_t* classes) {
               std::byte* const ranges = out + range_at;
               std::byte* const offsets = ranges + StepBytes(unit, m);
               if (unit.keys) {
                 kernels::QuantizeKeySteps(m, level_.keys, layer + unit.offset, ranges,
                                           reinterpret_cast<std::int8_t*>(offsets), codes,
                                           tops.data());
               } else {
                 kernels::QuantizeValueSteps(m, level_.values, layer + unit.offset, ranges, codes,
                                             tops.data());
               }
               std::byte* const packed = offsets + OffsetBytes(unit);
               for (std::size_t c = 0; c < static_cast<std::size_t>(unit.dim); c += 2) {
                 const unsigned low = AnsClassOf(tops[c]), high = AnsClassOf(tops[c + 1]);
                 packed[c / 2] = static_cast<std::byte>(low | high << 4);
                 classes[c] = static_cast<std::uint8_t>(low + Base(unit));
                 classes[c + 1] = static_cast<std::uint8_t>(high + Base(unit));
               }
             });
    return RangesBytes(shape);
  }

  absl::Status TakeRanges(const BlockShape& shape, const std::byte* in, const Coded& coded) const {
    bool finite = true;
    ForUnits(shape, coded,
             [&](const KvUnit& unit, const KvMatrix& m, std::size_t range_at, std::int16_t*,
                 std::uint8_t* classes) {
               const std::byte* const ranges = in + range_at;
               finite = finite && StepsAreFinite(unit, {ranges, StepBytes(unit, m)});
               const std::byte* const packed = ranges + StepBytes(unit, m) + OffsetBytes(unit);
               for (std::size_t c = 0; c < static_cast<std::size_t>(unit.dim); c += 2) {
                 const auto both = std::to_integer<unsigned>(packed[c / 2]);
                 classes[c] = static_cast<std::uint8_t>((both & 15u) + Base(unit));
                 classes[c + 1] = static_cast<std::uint8_t>((both >> 4) + Base(unit));
               }
             });
    if (finite) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        "codec ", ToAbsl(ToString(id_)), ": plane ranges has a step that is no finite number"));
  }

  std::size_t PutCodes(const BlockShape& shape, const Coded& coded, CodecScratch& scratch,
                       std::byte* out) const {
    const std::size_t room_bytes = 2 * LayerValues(shape);
    std::byte* const end = scratch.Room(CodecScratch::kEscapes, room_bytes) + room_bytes;
    std::byte* begin = end;
    KvAnsStates states;
    states.fill(kernels::kAnsLow);
    const std::int16_t* codes = coded.codes + LayerValues(shape);
    const std::uint8_t* classes =
        coded.classes + LayerValues(shape) / static_cast<std::size_t>(shape.block_tokens);
    for (std::int32_t i = UnitsOf(shape); i-- > 0;) {
      const KvMatrix m = MatrixOf(shape, AnsUnit(shape, i));
      codes -= Values(m);
      classes -= m.dim;
      begin = kernels::EncodeAns(AnsTables(), RowsOf(m, classes), codes, states, begin);
    }
    std::memcpy(out, states.data(), kStatesBytes);
    const auto words_bytes = static_cast<std::size_t>(end - begin);
    std::memcpy(out + kStatesBytes, begin, words_bytes);
    return kStatesBytes + words_bytes;
  }

  absl::Status TakeCodes(const BlockShape& shape, const std::byte* in, std::size_t bytes,
                         const Coded& coded) const {
    if (bytes < kStatesBytes) {
      return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(id_)),
                                                     ": plane codes has at least ", kStatesBytes,
                                                     " bytes, got ", bytes));
    }
    const std::byte* const end = in + bytes;
    KvAnsStates states;
    std::memcpy(states.data(), in, kStatesBytes);
    in += kStatesBytes;
    ForUnits(shape, coded,
             [&](const KvUnit&, const KvMatrix& m, std::size_t, std::int16_t* codes,
                 std::uint8_t* classes) {
               if (in == nullptr) return;
               in = kernels::DecodeAns(AnsTables(), RowsOf(m, classes), states, in, end, codes);
             });
    const bool ends = in == end && std::ranges::all_of(states, [](std::uint32_t state) {
                        return state == kernels::kAnsLow;
                      });
    if (ends) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(id_)),
                                                   ": plane codes of ", bytes,
                                                   " bytes does not end where its codes do"));
  }

  static std::size_t PutWides(const BlockShape& shape, const Coded& coded, std::byte* out) {
    const std::byte* const begin = out;
    ForUnits(shape, coded,
             [&](const KvUnit& unit, const KvMatrix& m, std::size_t, const std::int16_t* codes,
                 const std::uint8_t* classes) {
               ForWides(unit, classes, [&](std::size_t c) {
                 for (std::size_t i = c; i < Values(m); i += static_cast<std::size_t>(m.dim)) {
                   std::memcpy(out, codes + i, sizeof(*codes));
                   out += sizeof(*codes);
                 }
               });
             });
    return static_cast<std::size_t>(out - begin);
  }

  absl::Status TakeWides(const BlockShape& shape, const std::byte* in, std::size_t bytes,
                         const Coded& coded) const {
    std::size_t want = 0;
    ForUnits(shape, coded,
             [&](const KvUnit& unit, const KvMatrix& m, std::size_t, std::int16_t*,
                 const std::uint8_t* classes) {
               ForWides(unit, classes,
                        [&](std::size_t) { want += 2 * static_cast<std::size_t>(m.rows); });
             });
    RETURN_IF_ERROR(CheckPlane(*this, "wides", bytes, want));
    ForUnits(shape, coded,
             [&](const KvUnit& unit, const KvMatrix& m, std::size_t, std::int16_t* codes,
                 const std::uint8_t* classes) {
               ForWides(unit, classes, [&](std::size_t c) {
                 for (std::size_t i = c; i < Values(m); i += static_cast<std::size_t>(m.dim)) {
                   std::memcpy(codes + i, in, sizeof(*codes));
                   in += sizeof(*codes);
                 }
               });
             });
    return absl::OkStatus();
  }

  static void DequantizeUnits(const BlockShape& shape, const std::byte* in, const Coded& coded,
                              std::byte* layer) {
    ForUnits(shape, coded,
             [&](const KvUnit& unit, const KvMatrix& m, std::size_t range_at,
                 const std::int16_t* codes, const std::uint8_t*) {
               const std::byte* const ranges = in + range_at;
               std::byte* const x = layer + unit.offset;
               if (!unit.keys) return kernels::DequantizeValueSteps(m, ranges, codes, x);
               const std::byte* const offsets = ranges + StepBytes(unit, m);
               kernels::DequantizeKeySteps(m, ranges, reinterpret_cast<const std::int8_t*>(offsets),
                                           codes, x);
             });
  }

  static unsigned Base(const KvUnit& unit) { return unit.keys ? 0 : kAnsClasses; }
  static kernels::KvAnsRows RowsOf(const KvMatrix& m, const std::uint8_t* classes) {
    return {static_cast<std::size_t>(m.rows), static_cast<std::size_t>(m.dim), classes};
  }

  const CodecId id_;
  const AnsLevel level_;
};

}  // namespace

const Codec& AnsFineCodec() {
  static const AnsCodec codec(CodecId::kAnsFine);
  return codec;
}

const Codec& AnsMediumCodec() {
  static const AnsCodec codec(CodecId::kAnsMedium);
  return codec;
}

const Codec& AnsCoarseCodec() {
  static const AnsCodec codec(CodecId::kAnsCoarse);
  return codec;
}

}  // namespace penstock::kvstore
