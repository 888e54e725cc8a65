// SPDX-License-Identifier: Apache-2.0
// The specification of kernels/kv_codec_steps.h. Every other target is tested against it.
#include <algorithm>
#include <cmath>

#include "kernels/kv_codec_scalar.h"
#include "kernels/kv_codec_steps_targets.h"

namespace penstock::kernels {
namespace {

using namespace kv_scalar;

constexpr float kMagnitudeMax = 65504;

// The 16 partial sums of a sum over columns.
struct ColumnSum {
  float parts[16] = {};
  float Total() {
    for (int distance = 8; distance > 0; distance /= 2) {
      for (int i = 0; i < distance; ++i) parts[i] += parts[i + distance];
    }
    return parts[0];
  }
};

F16 StepOf(float step, float max) {
  return RoundUp(std::min(std::max(step, max / kKvStepsMax), kMagnitudeMax));
}

// The F16 that a byte stands for.
float StepOfByte(std::byte step) {
  return ToFloat(
      F16{static_cast<std::uint16_t>(std::to_integer<unsigned>(step) << kKvStepByteShift)});
}

void QuantizeKeys(const KvMatrix& shape, float level, const std::byte* x, std::byte* step,
                  std::int8_t* offsets, std::int16_t* codes, std::int32_t* tops) {
  const auto rows = static_cast<std::size_t>(shape.rows);
  const auto dim = static_cast<std::size_t>(shape.dim);
  const float share = 1 / static_cast<float>(shape.rows);
  float means[kKvStepDimMax];
  float max = 0;
  ColumnSum spread;
  for (std::size_t c = 0; c < dim; ++c) {
    float sum = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      const float value = Load(shape.dtype, x, r * dim + c);
      sum += value;
      max = std::max(max, std::abs(value));
    }
    means[c] = sum * share;
    float squares = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      const float off = Load(shape.dtype, x, r * dim + c) - means[c];
      squares = std::fma(off, off, squares);
    }
    spread.parts[c % 16] += std::sqrt(squares * share);
  }
  const float usual = spread.Total() / static_cast<float>(shape.dim);
  const F16 rounded = StepOf(level * usual, max);
  StoreHalf(step, 0, static_cast<std::uint16_t>(rounded));
  const float inverse = InverseOf(ToFloat(rounded));
  for (std::size_t c = 0; c < dim; ++c) {
    const float place = std::clamp(std::nearbyint(means[c] * inverse), -127.0f, 127.0f);
    offsets[c] = static_cast<std::int8_t>(place);
    tops[c] = 0;
    for (std::size_t i = c; i < rows * dim; i += dim) {
      const auto code =
          static_cast<std::int32_t>(std::nearbyint(Load(shape.dtype, x, i) * inverse)) - offsets[c];
      codes[i] = static_cast<std::int16_t>(code);
      tops[c] = std::max(tops[c], std::abs(code));
    }
  }
}

void DequantizeKeys(const KvMatrix& shape, const std::byte* step, const std::int8_t* offsets,
                    const std::int16_t* codes, std::byte* x) {
  const auto dim = static_cast<std::size_t>(shape.dim);
  const float scale = ToFloat(F16{LoadHalf(step, 0)});
  for (std::size_t i = 0; i < static_cast<std::size_t>(shape.rows) * dim; ++i) {
    Store(shape.dtype, static_cast<float>(codes[i] + offsets[i % dim]) * scale, x, i);
  }
}

void QuantizeValues(const KvMatrix& shape, float level, const std::byte* x, std::byte* steps,
                    std::int16_t* codes, std::int32_t* tops) {
  const auto dim = static_cast<std::size_t>(shape.dim);
  std::fill(tops, tops + dim, 0);
  for (std::size_t r = 0; r < static_cast<std::size_t>(shape.rows); ++r) {
    float max = 0;
    ColumnSum squares;
    for (std::size_t c = 0; c < dim; ++c) {
      const float value = Load(shape.dtype, x, r * dim + c);
      max = std::max(max, std::abs(value));
      float& part = squares.parts[c % 16];
      part = std::fma(value, value, part);
    }
    const float usual = std::sqrt(squares.Total() / static_cast<float>(shape.dim));
    const unsigned bits = static_cast<std::uint16_t>(StepOf(level * usual, max));
    steps[r] = static_cast<std::byte>(std::min<unsigned>(
        (bits + (1u << kKvStepByteShift) - 1) >> kKvStepByteShift, kKvStepByteMax));
    const float inverse = InverseOf(StepOfByte(steps[r]));
    for (std::size_t c = 0; c < dim; ++c) {
      const std::size_t i = r * dim + c;
      const auto code =
          static_cast<std::int32_t>(std::nearbyint(Load(shape.dtype, x, i) * inverse));
      codes[i] = static_cast<std::int16_t>(code);
      tops[c] = std::max(tops[c], std::abs(code));
    }
  }
}

void DequantizeValues(const KvMatrix& shape, const std::byte* steps, const std::int16_t* codes,
                      std::byte* x) {
  const auto dim = static_cast<std::size_t>(shape.dim);
  for (std::size_t i = 0; i < static_cast<std::size_t>(shape.rows) * dim; ++i) {
    const float scale = StepOfByte(steps[i / dim]);
    Store(shape.dtype, static_cast<float>(codes[i]) * scale, x, i);
  }
}

}  // namespace

const KvStepsTarget kKvStepsScalar = {"scalar", QuantizeKeys, DequantizeKeys, QuantizeValues,
                                      DequantizeValues};

}  // namespace penstock::kernels
