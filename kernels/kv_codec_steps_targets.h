// SPDX-License-Identifier: Apache-2.0
// The targets behind kernels/kv_codec_steps.h, for its dispatch and its tests. Contracts are there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/kv_codec_steps.h"

namespace penstock::kernels {

// A step is at least the largest magnitude divided by this, so that codes fit: an offset takes 127
// more, and rounding one.
inline constexpr float kKvStepsMax = 16000;

struct KvStepsTarget {
  std::string_view name;
  void (*quantize_keys)(const KvMatrix& shape, float level, const std::byte* x, std::byte* step,
                        std::int8_t* offsets, std::int16_t* codes, std::int32_t* tops);
  void (*dequantize_keys)(const KvMatrix& shape, const std::byte* step, const std::int8_t* offsets,
                          const std::int16_t* codes, std::byte* x);
  void (*quantize_values)(const KvMatrix& shape, float level, const std::byte* x, std::byte* steps,
                          std::int16_t* codes, std::int32_t* tops);
  void (*dequantize_values)(const KvMatrix& shape, const std::byte* steps,
                            const std::int16_t* codes, std::byte* x);
};
// All this CPU can run: scalar first, best last.
std::span<const KvStepsTarget> KvStepsTargets();

extern const KvStepsTarget kKvStepsScalar;
extern const KvStepsTarget kKvStepsAvx2;
extern const KvStepsTarget kKvStepsAvx512;

}  // namespace penstock::kernels
