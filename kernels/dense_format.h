// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/weight_format.h"

namespace penstock::kernels {

// What weights of a format are rounded to where a library multiplies them: kF32, kF16 or kBF16.
constexpr WeightFormat DenseFormat(WeightFormat format) {
  return format == WeightFormat::kF32 || format == WeightFormat::kBF16 ? format
                                                                       : WeightFormat::kF16;
}

}  // namespace penstock::kernels
