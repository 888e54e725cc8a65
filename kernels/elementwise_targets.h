// SPDX-License-Identifier: Apache-2.0
// The targets behind kernels/elementwise.h, for its dispatch and its tests. Contracts are there.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/elementwise.h"

namespace penstock::kernels {

struct ElementwiseTarget {
  std::string_view name;
  void (*rms_norm)(const float* x, const float* w, std::int32_t n, float eps, float* y);
  void (*add)(const float* y, std::int32_t n, float* x);
  void (*rope)(RopePairs pairs, const float* cos, const float* sin, std::int32_t rotary_dim,
               float* x);
  void (*gated_activation)(Activation activation, const float* up, std::int32_t n, float* gate);
  // Of types without scales.
  void (*narrow_row)(KvDtype dtype, const float* from, std::int32_t n, std::byte* to);
  void (*widen_row)(KvDtype dtype, const std::byte* from, std::int32_t n, float* to);
};
// All this CPU can run: scalar first, best last.
std::span<const ElementwiseTarget> ElementwiseTargets();

extern const ElementwiseTarget kElementwiseScalar;
extern const ElementwiseTarget kElementwiseAvx2;
extern const ElementwiseTarget kElementwiseAvx512;

// gelu(x) = x / (1 + Exp(kGeluFactor * fma(kGeluCubic, (x * x) * x, x)))
inline constexpr float kGeluFactor = -1.5957691216f;  // -2 * sqrt(2 / pi)
inline constexpr float kGeluCubic = 0.044715f;

}  // namespace penstock::kernels
