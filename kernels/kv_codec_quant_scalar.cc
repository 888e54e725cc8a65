// SPDX-License-Identifier: Apache-2.0
// The specification of kernels/kv_codec_quant.h. Every other target is tested against it.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/float16.h"
#include "kernels/kv_codec_quant_targets.h"
#include "kernels/kv_codec_scalar.h"

namespace penstock::kernels {
namespace {

using namespace kv_scalar;

// The largest F16 that is not above `value`, of a magnitude up to 65,504.
F16 RoundDown(float value) {
  const F16 nearest = ToF16(value);
  if (ToFloat(nearest) <= value) return nearest;
  const auto bits = static_cast<std::uint16_t>(nearest);
  return F16{static_cast<std::uint16_t>((bits & 0x8000u) != 0 ? bits + 1 : bits - 1)};
}

std::uint32_t MaxBitsScalar(KvDtype dtype, const std::byte* x, std::size_t n) {
  std::uint32_t most = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (dtype == KvDtype::kF32) {
      std::uint32_t bits;
      std::memcpy(&bits, x + 4 * i, sizeof(bits));
      most = std::max(most, bits & 0x7FFFFFFFu);
    } else {
      most = std::max(most, LoadHalf(x, i) & std::uint32_t{0x7FFF});
    }
  }
  return most;
}

void QuantizeInt8Scalar(const KvMatrix& shape, const std::byte* x, std::byte* q,
                        std::byte* scales) {
  const auto dim = static_cast<std::size_t>(shape.dim);
  for (std::size_t row = 0; row < static_cast<std::size_t>(shape.rows); ++row) {
    float max = 0;
    for (std::size_t i = row * dim; i < (row + 1) * dim; ++i) {
      max = std::max(max, std::abs(Load(shape.dtype, x, i)));
    }
    const F16 scale = RoundUp(max / 127);
    const float inverse = InverseOf(ToFloat(scale));
    StoreHalf(scales, row, static_cast<std::uint16_t>(scale));
    for (std::size_t i = row * dim; i < (row + 1) * dim; ++i) {
      const float code = std::nearbyint(Load(shape.dtype, x, i) * inverse);
      q[i] = static_cast<std::byte>(static_cast<std::int8_t>(code));
    }
  }
}

void DequantizeInt8Scalar(const KvMatrix& shape, const std::byte* q, const std::byte* scales,
                          std::byte* x) {
  const auto dim = static_cast<std::size_t>(shape.dim);
  for (std::size_t row = 0; row < static_cast<std::size_t>(shape.rows); ++row) {
    const float scale = ToFloat(F16{LoadHalf(scales, row)});
    for (std::size_t i = row * dim; i < (row + 1) * dim; ++i) {
      Store(shape.dtype, static_cast<float>(static_cast<std::int8_t>(q[i])) * scale, x, i);
    }
  }
}

// Values that share a scale: `rows` rows of `columns` from x[0] on, `dim` apart.
struct Range {
  std::uint16_t scale, minimum;
};
Range RangeOf(int bits, const KvMatrix& shape, const std::byte* x, std::size_t first,
              std::size_t rows, std::size_t columns) {
  float min = INFINITY;
  float max = -INFINITY;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t c = 0; c < columns; ++c) {
      const float value =
          Load(shape.dtype, x, first + row * static_cast<std::size_t>(shape.dim) + c);
      min = std::min(min, value);
      max = std::max(max, value);
    }
  }
  // Of the two zeros the positive one, whichever came first.
  const F16 minimum = RoundDown(min + 0.0f);
  const float steps = bits == 4 ? 15 : 3;
  const F16 scale = RoundUp(((max - ToFloat(minimum)) + 0.0f) / steps);
  return {static_cast<std::uint16_t>(scale), static_cast<std::uint16_t>(minimum)};
}

// Values of a group, of its bytes, and the group's place in a row.
struct Group {
  std::size_t begin, values;
  // The byte of value i, and its shift there.
  std::size_t Byte(int bits, std::size_t i) const {
    return begin * static_cast<std::size_t>(bits) / 8 + i % PerByte(bits);
  }
  unsigned Shift(int bits, std::size_t i) const {
    return static_cast<unsigned>(i / PerByte(bits)) * static_cast<unsigned>(bits);
  }

 private:
  std::size_t PerByte(int bits) const { return values * static_cast<std::size_t>(bits) / 8; }
};

Group GroupOf(const KvMatrix& shape, std::size_t g) {
  const std::size_t begin = g * kKvGroupValues;
  return {begin,
          std::min<std::size_t>(kKvGroupValues, static_cast<std::size_t>(shape.dim) - begin)};
}

// Calls with(row, group, index of value in group, index of value in x, index of the scale) for all.
template <typename With>
void ForAll(const KvMatrix& shape, bool channels, With with) {
  const auto dim = static_cast<std::size_t>(shape.dim);
  const auto groups = static_cast<std::size_t>(KvGroups(shape.dim));
  for (std::size_t row = 0; row < static_cast<std::size_t>(shape.rows); ++row) {
    for (std::size_t g = 0; g < groups; ++g) {
      const Group group = GroupOf(shape, g);
      for (std::size_t i = 0; i < group.values; ++i) {
        const std::size_t range = channels ? group.begin + i : row * groups + g;
        with(row, group, i, row * dim + group.begin + i, range);
      }
    }
  }
}

void Pack(int bits, const KvMatrix& shape, bool channels, const std::byte* x,
          const std::byte* scales, const std::byte* minima, std::byte* codes) {
  const std::size_t row_bytes = static_cast<std::size_t>(shape.dim) * bits / 8;
  std::memset(codes, 0, row_bytes * static_cast<std::size_t>(shape.rows));
  ForAll(shape, channels,
         [&](std::size_t row, const Group& group, std::size_t i, std::size_t at, std::size_t r) {
           const float minimum = ToFloat(F16{LoadHalf(minima, r)});
           const float inverse = InverseOf(ToFloat(F16{LoadHalf(scales, r)}));
           const float code = std::nearbyint((Load(shape.dtype, x, at) - minimum) * inverse);
           codes[row * row_bytes + group.Byte(bits, i)] |=
               static_cast<std::byte>(static_cast<unsigned>(code) << group.Shift(bits, i));
         });
}

void Unpack(int bits, const KvMatrix& shape, bool channels, const std::byte* codes,
            const std::byte* scales, const std::byte* minima, std::byte* x) {
  const std::size_t row_bytes = static_cast<std::size_t>(shape.dim) * bits / 8;
  const unsigned mask = (1u << bits) - 1;
  ForAll(shape, channels,
         [&](std::size_t row, const Group& group, std::size_t i, std::size_t at, std::size_t r) {
           const auto byte =
               std::to_integer<unsigned>(codes[row * row_bytes + group.Byte(bits, i)]);
           const auto code = static_cast<float>((byte >> group.Shift(bits, i)) & mask);
           const float minimum = ToFloat(F16{LoadHalf(minima, r)});
           const float scale = ToFloat(F16{LoadHalf(scales, r)});
           Store(shape.dtype, std::fma(code, scale, minimum), x, at);
         });
}

void QuantizeGroupsScalar(int bits, const KvMatrix& shape, const std::byte* x, std::byte* codes,
                          std::byte* scales, std::byte* minima) {
  const auto groups = static_cast<std::size_t>(KvGroups(shape.dim));
  for (std::size_t row = 0; row < static_cast<std::size_t>(shape.rows); ++row) {
    for (std::size_t g = 0; g < groups; ++g) {
      const Group group = GroupOf(shape, g);
      const std::size_t first = row * static_cast<std::size_t>(shape.dim) + group.begin;
      const Range range = RangeOf(bits, shape, x, first, 1, group.values);
      StoreHalf(scales, row * groups + g, range.scale);
      StoreHalf(minima, row * groups + g, range.minimum);
    }
  }
  Pack(bits, shape, false, x, scales, minima, codes);
}

void DequantizeGroupsScalar(int bits, const KvMatrix& shape, const std::byte* codes,
                            const std::byte* scales, const std::byte* minima, std::byte* x) {
  Unpack(bits, shape, false, codes, scales, minima, x);
}

void QuantizeChannelsScalar(int bits, const KvMatrix& shape, const std::byte* x, std::byte* codes,
                            std::byte* scales, std::byte* minima) {
  for (std::size_t c = 0; c < static_cast<std::size_t>(shape.dim); ++c) {
    const Range range = RangeOf(bits, shape, x, c, static_cast<std::size_t>(shape.rows), 1);
    StoreHalf(scales, c, range.scale);
    StoreHalf(minima, c, range.minimum);
  }
  Pack(bits, shape, true, x, scales, minima, codes);
}

void DequantizeChannelsScalar(int bits, const KvMatrix& shape, const std::byte* codes,
                              const std::byte* scales, const std::byte* minima, std::byte* x) {
  Unpack(bits, shape, true, codes, scales, minima, x);
}

}  // namespace

const KvQuantTarget kKvQuantScalar = {.name = "scalar",
                                      .max_bits = MaxBitsScalar,
                                      .quantize_int8 = QuantizeInt8Scalar,
                                      .dequantize_int8 = DequantizeInt8Scalar,
                                      .quantize_groups = QuantizeGroupsScalar,
                                      .dequantize_groups = DequantizeGroupsScalar,
                                      .quantize_channels = QuantizeChannelsScalar,
                                      .dequantize_channels = DequantizeChannelsScalar};

}  // namespace penstock::kernels
