// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <vector>

#include "base/check.h"
#include "device/cpu_info.h"
#include "kernels/linear_targets.h"

namespace penstock::kernels {

std::span<const MultiplyPanelsTarget> MultiplyPanelsTargets() {
  static const std::vector<MultiplyPanelsTarget> targets = [] {
    std::vector<MultiplyPanelsTarget> list = {{"scalar", MultiplyPanelsScalar}};
    const CpuInfo& cpu = ThisCpu();
    if (cpu.avx2) list.push_back({"avx2", MultiplyPanelsAvx2});
    if (cpu.avx512) list.push_back({"avx512", MultiplyPanelsAvx512});
    if (cpu.avx512_vnni) list.push_back({"avx512-vnni", MultiplyPanelsAvx512Vnni});
    return list;
  }();
  return targets;
}

void MultiplyPanels(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                    std::int32_t panel_begin, std::int32_t panel_end, float* y,
                    std::int64_t y_stride) {
  CHECK_EQ(w.cols, x.cols);
  CHECK(w.takes_int8() ? x.q != nullptr && x.scale != nullptr && x.sum != nullptr
                       : x.f32 != nullptr);
  CHECK_LE(0, panel_begin);
  CHECK_LE(panel_end, (w.rows + kPanelRows - 1) / kPanelRows);
  static const MultiplyPanelsFn best = MultiplyPanelsTargets().back().run;
  best(w, x, rows, panel_begin, panel_end, y, y_stride);
}

}  // namespace penstock::kernels
