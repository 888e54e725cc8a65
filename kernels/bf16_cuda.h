// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/gpu.h"
//
#include <cstdint>

namespace penstock::kernels {

// As ToBF16 of base/float16.h.
GPU_DEVICE std::uint16_t ToBF16Cuda(float x) {
  const std::uint32_t bits = gpu::BitsFromFloat(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace penstock::kernels
