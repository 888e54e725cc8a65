// SPDX-License-Identifier: Apache-2.0
// The 16-bit floats of model files and KV pages, as bit patterns, and their exact conversions.
// These are the specification; kernels convert in bulk with the CPU's instructions and are tested
// against them.
#pragma once

#include <bit>
#include <cstdint>

namespace penstock {

enum class F16 : std::uint16_t {};   // IEEE binary16.
enum class BF16 : std::uint16_t {};  // The upper half of an IEEE binary32.

float ToFloat(F16 h);
inline float ToFloat(BF16 b) { return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16); }

// Round to nearest, ties to even. Too large becomes infinite; a NaN stays a (quiet) NaN.
F16 ToF16(float f);
BF16 ToBF16(float f);

// As ToF16, but a finite value too large for F16 becomes the largest finite one (65504). KV pages
// are written with this one, so that a masked key can be multiplied by zero.
F16 ToF16Saturated(float f);

}  // namespace penstock
