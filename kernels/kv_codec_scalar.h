// SPDX-License-Identifier: Apache-2.0
// What the scalar specifications of KV codecs share: values of every type, one at a time, at any
// address. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "base/kv_spec.h"

namespace penstock::kernels::kv_scalar {

inline std::uint16_t LoadHalf(const std::byte* from, std::size_t i) {
  std::uint16_t bits;
  std::memcpy(&bits, from + 2 * i, sizeof(bits));
  return bits;
}

inline void StoreHalf(std::byte* to, std::size_t i, std::uint16_t bits) {
  std::memcpy(to + 2 * i, &bits, sizeof(bits));
}

inline float Load(KvDtype dtype, const std::byte* x, std::size_t i) {
  if (dtype == KvDtype::kF16) return ToFloat(F16{LoadHalf(x, i)});
  if (dtype == KvDtype::kBF16) return ToFloat(BF16{LoadHalf(x, i)});
  float value;
  std::memcpy(&value, x + 4 * i, sizeof(value));
  return value;
}

inline void Store(KvDtype dtype, float value, std::byte* x, std::size_t i) {
  if (dtype == KvDtype::kF32) {
    std::memcpy(x + 4 * i, &value, sizeof(value));
  } else if (dtype == KvDtype::kF16) {
    StoreHalf(x, i, static_cast<std::uint16_t>(ToF16Saturated(value)));
  } else {
    StoreHalf(x, i, static_cast<std::uint16_t>(ToBF16(value)));
  }
}

// The least F16 that is not below `value`, which is from 0 to 65,504.
inline F16 RoundUp(float value) {
  const F16 nearest = ToF16(value);
  if (ToFloat(nearest) >= value) return nearest;
  return F16{static_cast<std::uint16_t>(static_cast<std::uint16_t>(nearest) + 1)};
}

inline float InverseOf(float scale) { return scale > 0 ? 1 / scale : 0; }

}  // namespace penstock::kernels::kv_scalar
