// SPDX-License-Identifier: Apache-2.0
#include "kernels/elementwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "device/cpu_info.h"
#include "kernels/elementwise_targets.h"
#include "kernels/kv_codec_quant.h"

namespace penstock::kernels {
namespace {

const ElementwiseTarget& Best() {
  static const ElementwiseTarget best = ElementwiseTargets().back();
  return best;
}

// One row of floats.
KvMatrix Floats(std::int32_t n) { return {.dtype = KvDtype::kF32, .rows = 1, .dim = n}; }

void NarrowToInt8(const float* from, std::int32_t n, std::byte* to, std::byte* scale) {
  constexpr float kMost = 127 * 65504.0f;
  const auto count = static_cast<std::size_t>(n);
  const auto* const bytes = reinterpret_cast<const std::byte*>(from);
  const float most = MaxMagnitude(KvDtype::kF32, bytes, count);
  if (most <= kMost) return QuantizeInt8(Floats(n), bytes, to, scale);
  if (!std::isfinite(most)) {
    const std::uint16_t nan = 0x7E00;
    std::memset(to, 0, count);
    std::memcpy(scale, &nan, sizeof(nan));
    return;
  }
  std::vector<float> cut(from, from + n);
  for (float& x : cut) x = std::clamp(x, -kMost, kMost);
  QuantizeInt8(Floats(n), reinterpret_cast<const std::byte*>(cut.data()), to, scale);
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

void NarrowRow(KvDtype dtype, const float* from, std::int32_t n, std::byte* to, std::byte* scale) {
  CHECK_GE(n, 0);
  if (dtype == KvDtype::kInt8) return NarrowToInt8(from, n, to, scale);
  Best().narrow_row(dtype, from, n, to);
}

void WidenRow(KvDtype dtype, const std::byte* from, const std::byte* scale, std::int32_t n,
              float* to) {
  CHECK_GE(n, 0);
  if (dtype == KvDtype::kInt8) {
    DequantizeInt8(Floats(n), from, scale, reinterpret_cast<std::byte*>(to));
    return;
  }
  Best().widen_row(dtype, from, n, to);
}

}  // namespace penstock::kernels
