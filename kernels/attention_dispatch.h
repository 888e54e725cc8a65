// SPDX-License-Identifier: Apache-2.0
// From the page type and row count of a call to the instance of a kernel that was compiled for
// them; shared by the SIMD targets of attention. Plain code: the kernels it calls carry their own
// target.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "base/kv_spec.h"
#include "kernels/attention_driver.h"

namespace penstock::kernels {

template <KvDtype dtype>
inline constexpr std::int32_t kElementBytes = dtype == KvDtype::kF32    ? 4
                                              : dtype == KvDtype::kInt8 ? 1
                                                                        : 2;

// Of row i; nothing is read where there are no scales.
template <KvDtype dtype>
float ScaleAt(const KvRows& rows, std::int32_t i) {
  return dtype == KvDtype::kInt8 ? rows.scales[i] : 1;
}

// call.operator()<dtype>()
template <typename F>
void WithDtype(KvDtype dtype, F call) {
  switch (dtype) {
    case KvDtype::kF16:
      return call.template operator()<KvDtype::kF16>();
    case KvDtype::kBF16:
      return call.template operator()<KvDtype::kBF16>();
    case KvDtype::kF32:
      return call.template operator()<KvDtype::kF32>();
    case KvDtype::kInt8:
      return call.template operator()<KvDtype::kInt8>();
  }
}

// call.operator()<count>(), count from 1 to kMost.
template <int kMost, typename F>
void WithCount(std::int32_t count, F call) {
  if constexpr (kMost == 0) {
    CHECK(false);
  } else {
    if (count == kMost) return call.template operator()<kMost>();
    WithCount<kMost - 1>(count, call);
  }
}

}  // namespace penstock::kernels
