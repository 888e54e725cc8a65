// SPDX-License-Identifier: Apache-2.0
#include "kernels/elementwise.h"

#include <vector>

#include "base/check.h"
#include "device/cpu_info.h"
#include "kernels/elementwise_targets.h"

namespace penstock::kernels {
namespace {

const ElementwiseTarget& Best() {
  static const ElementwiseTarget best = ElementwiseTargets().back();
  return best;
}

}  // namespace

std::span<const ElementwiseTarget> ElementwiseTargets() {
  static const std::vector<ElementwiseTarget> targets = [] {
    std::vector<ElementwiseTarget> all = {kElementwiseScalar};
    if (ThisCpu().avx2) all.push_back(kElementwiseAvx2);
    if (ThisCpu().avx512) all.push_back(kElementwiseAvx512);
    return all;
  }();
  return targets;
}

void RmsNorm(const float* x, const float* w, std::int32_t n, float eps, float* y) {
  CHECK_GE(n, 1);
  Best().rms_norm(x, w, n, eps, y);
}

void Add(const float* y, std::int32_t n, float* x) {
  CHECK_GE(n, 0);
  Best().add(y, n, x);
}

void Rope(RopePairs pairs, const float* cos, const float* sin, std::int32_t rotary_dim, float* x) {
  CHECK(rotary_dim >= 0 && rotary_dim % 2 == 0);
  Best().rope(pairs, cos, sin, rotary_dim, x);
}

void GatedActivation(Activation activation, const float* up, std::int32_t n, float* gate) {
  CHECK_GE(n, 0);
  Best().gated_activation(activation, up, n, gate);
}

void NarrowRow(KvDtype dtype, const float* from, std::int32_t n, std::byte* to) {
  CHECK_GE(n, 0);
  Best().narrow_row(dtype, from, n, to);
}

void WidenRow(KvDtype dtype, const std::byte* from, std::int32_t n, float* to) {
  CHECK_GE(n, 0);
  Best().widen_row(dtype, from, n, to);
}

}  // namespace penstock::kernels
