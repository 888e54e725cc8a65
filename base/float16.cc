// SPDX-License-Identifier: Apache-2.0
#include "base/float16.h"

#include <cmath>

namespace penstock {

float ToFloat(F16 h) {
  const std::uint32_t bits = static_cast<std::uint16_t>(h);
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1Fu;
  const std::uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0x1F) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {  // Zero or subnormal: mantissa * 2^-24, exact in binary32.
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

F16 ToF16(float f) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  std::uint32_t half;
  if (magnitude > 0x7F800000u) {  // NaN: keep the upper payload, made quiet.
    half = 0x7E00u | ((magnitude >> 13) & 0x3FFu);
  } else if (magnitude >= 0x477FF000u) {  // 65520 and above round to infinity.
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // Below 2^-14: subnormal; adding 0.5 aligns the mantissa.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u;
  } else {
    const std::uint32_t odd = (magnitude >> 13) & 1u;
    half = (magnitude - 0x38000000u + 0xFFFu + odd) >> 13;
  }
  return F16{static_cast<std::uint16_t>(sign | half)};
}

F16 ToF16Saturated(float f) {
  if (std::isfinite(f) && std::abs(f) > 65504.0f) f = std::copysign(65504.0f, f);
  return ToF16(f);
}

BF16 ToBF16(float f) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
    return BF16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return BF16{static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace penstock
