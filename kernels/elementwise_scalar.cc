// SPDX-License-Identifier: Apache-2.0
// The specification of kernels/elementwise.h. Every other target is tested against it.
#include <cmath>
#include <cstring>

#include "base/float16.h"
#include "kernels/elementwise_targets.h"
#include "kernels/exp.h"

namespace penstock::kernels {
namespace {

void RmsNormScalar(const float* x, const float* w, std::int32_t n, float eps, float* y) {
  float sums[16] = {};
  for (std::int32_t i = 0; i < n; ++i) sums[i % 16] = std::fma(x[i], x[i], sums[i % 16]);
  for (int distance = 8; distance > 0; distance /= 2) {
    for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
  }
  const float factor = 1 / std::sqrt(sums[0] / static_cast<float>(n) + eps);
  for (std::int32_t i = 0; i < n; ++i) y[i] = x[i] * factor * w[i];
}

void AddScalar(const float* y, std::int32_t n, float* x) {
  for (std::int32_t i = 0; i < n; ++i) x[i] += y[i];
}

void RopeScalar(RopePairs pairs, const float* cos, const float* sin, std::int32_t rotary_dim,
                float* x) {
  const std::int32_t half = rotary_dim / 2;
  for (std::int32_t i = 0; i < half; ++i) {
    const std::int32_t first = pairs == RopePairs::kAdjacent ? 2 * i : i;
    const std::int32_t second = pairs == RopePairs::kAdjacent ? 2 * i + 1 : i + half;
    const float a = x[first];
    const float b = x[second];
    x[first] = std::fma(a, cos[i], -(b * sin[i]));
    x[second] = std::fma(b, cos[i], a * sin[i]);
  }
}

float Silu(float x) { return x / (1 + Exp(-x)); }

float GeluTanh(float x) {
  return x / (1 + Exp(kGeluFactor * std::fma(kGeluCubic, (x * x) * x, x)));
}

void GatedActivationScalar(Activation activation, const float* up, std::int32_t n, float* gate) {
  for (std::int32_t i = 0; i < n; ++i) {
    gate[i] = (activation == Activation::kSilu ? Silu(gate[i]) : GeluTanh(gate[i])) * up[i];
  }
}

void NarrowRowScalar(KvDtype dtype, const float* from, std::int32_t n, std::byte* to) {
  if (n == 0) return;  // Null is no address for memcpy.
  if (dtype == KvDtype::kF32) {
    std::memcpy(to, from, sizeof(float) * n);
    return;
  }
  for (std::int32_t i = 0; i < n; ++i) {
    const std::uint16_t bits = dtype == KvDtype::kF16
                                   ? static_cast<std::uint16_t>(ToF16Saturated(from[i]))
                                   : static_cast<std::uint16_t>(ToBF16(from[i]));
    std::memcpy(to + 2 * i, &bits, sizeof(bits));
  }
}

void WidenRowScalar(KvDtype dtype, const std::byte* from, std::int32_t n, float* to) {
  if (n == 0) return;  // Null is no address for memcpy.
  if (dtype == KvDtype::kF32) {
    std::memcpy(to, from, sizeof(float) * n);
    return;
  }
  for (std::int32_t i = 0; i < n; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, from + 2 * i, sizeof(bits));
    to[i] = dtype == KvDtype::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
  }
}

}  // namespace

const ElementwiseTarget kElementwiseScalar = {"scalar",      RmsNormScalar,         AddScalar,
                                              RopeScalar,    GatedActivationScalar, NarrowRowScalar,
                                              WidenRowScalar};

}  // namespace penstock::kernels
