// SPDX-License-Identifier: Apache-2.0
// The number formats that weights come in, as GGUF and safetensors store them, and their exact
// meaning.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace penstock::kernels {

enum class WeightFormat : std::uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,  // Blocks of 32.
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,  // Super-blocks of 256.
};
inline constexpr WeightFormat kWeightFormats[] = {
    WeightFormat::kF32,  WeightFormat::kF16,  WeightFormat::kBF16, WeightFormat::kQ4_0,
    WeightFormat::kQ4_1, WeightFormat::kQ5_0, WeightFormat::kQ5_1, WeightFormat::kQ8_0,
    WeightFormat::kQ2_K, WeightFormat::kQ3_K, WeightFormat::kQ4_K, WeightFormat::kQ5_K,
    WeightFormat::kQ6_K};  // All, in the order of their numbers.

struct WeightFormatInfo {
  std::string_view name;  // "q4_1"
  std::int32_t block;     // Weights per block; a row's length is a multiple of it.
  std::int32_t bytes;     // Bytes per block.
};
const WeightFormatInfo& Info(WeightFormat format);

// Bytes of `rows` rows of `cols` weights; cols must be a multiple of the format's block.
std::size_t BytesOf(WeightFormat format, std::int64_t rows, std::int64_t cols);

// The specification: out[i] is the value of weight i, computed in float in the order that ggml's
// reference does. `row`: [cols] in `format`. `out`: [cols].
void DequantizeRow(WeightFormat format, const std::byte* row, std::span<float> out);

}  // namespace penstock::kernels
