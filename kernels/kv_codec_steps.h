// SPDX-License-Identifier: Apache-2.0
// Quantization of KV in even steps, for codes that are then entropy coded (kv_codec_ans.h): of one
// KV head's K or V of a block, [rows, dim], rows being tokens. A step is a multiple (`level`) of how
// far values usually are from where they usually are; codes have no bounds of their own, and rare
// ones are large.
//
// As in kv_codec_quant.h: what is quantized is finite and at most 65,504 in magnitude; each value
// comes back within half a step of what it was, before it is rounded to `dtype`; all targets give
// the same bits; targets other than the scalar one take rows whose `dim` is a multiple of 32. `dim`
// is a multiple of 8 up to kKvStepDimMax. Sums over columns are 16 partial ones by column mod 16,
// added in pairs at distance 8, 4, 2, 1; sums over rows go from the first to the last. No pointer to
// bytes needs alignment. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kv_codec_quant.h"

namespace penstock::kernels {

inline constexpr std::int32_t kKvStepDimMax = 1024;
// As a byte, the largest finite step; what is above is none.
inline constexpr std::uint8_t kKvStepByteMax = 0xF7;
inline constexpr int kKvStepByteShift = 7;
// No code is larger: steps grow before.
inline constexpr std::int32_t kKvStepCodeMax = 16128;

// Keys, whose columns each keep to a place of their own: one step for all, `level` times the mean
// over columns of the root of the mean square of what is off the column's mean; and an offset per
// column, its mean in steps, as far as an int8 goes. code = round(x / step) - offset, to even.
// step: one F16, offsets: [dim], codes: [rows, dim], tops: [dim], the largest |code| of each column.
void QuantizeKeySteps(const KvMatrix& shape, float level, const std::byte* x, std::byte* step,
                      std::int8_t* offsets, std::int16_t* codes, std::int32_t* tops);
// Any codes and offsets, any finite step.
void DequantizeKeySteps(const KvMatrix& shape, const std::byte* step, const std::int8_t* offsets,
                        const std::int16_t* codes, std::byte* x);

// Values, whose rows count by what they are and not by where: a step per row, `level` times the root
// of the mean square of it. steps: [rows] bytes, each being the exponent and 3 bits of the mantissa
// of an F16, which has zeros for the rest; rounded up, but to no more than the largest such.
void QuantizeValueSteps(const KvMatrix& shape, float level, const std::byte* x, std::byte* steps,
                        std::int16_t* codes, std::int32_t* tops);
// Steps are at most kKvStepByteMax.
void DequantizeValueSteps(const KvMatrix& shape, const std::byte* steps, const std::int16_t* codes,
                          std::byte* x);

}  // namespace penstock::kernels
