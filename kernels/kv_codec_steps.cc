// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec_steps.h"

#include <vector>

#include "base/check.h"
#include "device/cpu_info.h"
#include "kernels/kv_codec_steps_targets.h"

namespace penstock::kernels {
namespace {

const KvStepsTarget& Best() {
  static const KvStepsTarget best = KvStepsTargets().back();
  return best;
}

void CheckShape(const KvMatrix& shape) {
  CHECK(shape.dtype != KvDtype::kInt8);
  CHECK_GE(shape.rows, 1);
  CHECK(shape.dim >= 8 && shape.dim <= kKvStepDimMax && shape.dim % 8 == 0);
}

// Above 1 a step could be more than an F16 holds.
void CheckShape(const KvMatrix& shape, float level) {
  CheckShape(shape);
  CHECK(level > 0 && level <= 1);
}

}  // namespace

std::span<const KvStepsTarget> KvStepsTargets() {
  static const std::vector<KvStepsTarget> targets = [] {
    std::vector<KvStepsTarget> all = {kKvStepsScalar};
    if (ThisCpu().avx2) all.push_back(kKvStepsAvx2);
    if (ThisCpu().avx512) all.push_back(kKvStepsAvx512);
    return all;
  }();
  return targets;
}

void QuantizeKeySteps(const KvMatrix& shape, float level, const std::byte* x, std::byte* step,
                      std::int8_t* offsets, std::int16_t* codes, std::int32_t* tops) {
  CheckShape(shape, level);
  Best().quantize_keys(shape, level, x, step, offsets, codes, tops);
}

void DequantizeKeySteps(const KvMatrix& shape, const std::byte* step, const std::int8_t* offsets,
                        const std::int16_t* codes, std::byte* x) {
  CheckShape(shape);
  Best().dequantize_keys(shape, step, offsets, codes, x);
}

void QuantizeValueSteps(const KvMatrix& shape, float level, const std::byte* x, std::byte* steps,
                        std::int16_t* codes, std::int32_t* tops) {
  CheckShape(shape, level);
  Best().quantize_values(shape, level, x, steps, codes, tops);
}

void DequantizeValueSteps(const KvMatrix& shape, const std::byte* steps, const std::int16_t* codes,
                          std::byte* x) {
  CheckShape(shape);
  Best().dequantize_values(shape, steps, codes, x);
}

}  // namespace penstock::kernels
