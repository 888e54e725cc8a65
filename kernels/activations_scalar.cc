// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels/linear_targets.h"

namespace penstock::kernels {

void QuantizeRowScalar(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                       std::int32_t* sum) {
  for (std::int32_t begin = 0; begin < cols; begin += 32, ++scale, ++sum, q += 32) {
    const std::int32_t count = std::min(32, cols - begin);
    float max_abs = 0;
    for (std::int32_t i = 0; i < count; ++i) max_abs = std::max(max_abs, std::abs(x[begin + i]));
    *scale = max_abs / 127;
    if (*scale < FLT_MIN) *scale = 0;
    const float inverse = *scale > 0 ? 1 / *scale : 0;
    *sum = 0;
    for (std::int32_t i = 0; i < 32; ++i) {
      // lrint, since to convert a NaN by a cast would be undefined. It rounds to even.
      const long rounded = i < count ? std::lrint(x[begin + i] * inverse) : 0;
      q[i] = static_cast<std::int8_t>(std::clamp(rounded, -127l, 127l));
      *sum += q[i];
    }
  }
}

}  // namespace penstock::kernels
