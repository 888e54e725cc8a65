// SPDX-License-Identifier: Apache-2.0
#include "kernels/activations.h"

#include <vector>

#include "device/cpu_info.h"
#include "kernels/linear_targets.h"

namespace penstock::kernels {

std::span<const QuantizeRowTarget> QuantizeRowTargets() {
  static const std::vector<QuantizeRowTarget> targets = [] {
    std::vector<QuantizeRowTarget> list = {{"scalar", QuantizeRowScalar}};
    const CpuInfo& cpu = ThisCpu();
    if (cpu.avx2) list.push_back({"avx2", QuantizeRowAvx2});
    if (cpu.avx512) list.push_back({"avx512", QuantizeRowAvx512});
    return list;
  }();
  return targets;
}

void QuantizeRow(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                 std::int32_t* sum) {
  static const QuantizeRowFn best = QuantizeRowTargets().back().run;
  best(x, cols, q, scale, sum);
}

}  // namespace penstock::kernels
