// SPDX-License-Identifier: Apache-2.0
// From the page type and row count of a call to the instance of a kernel that was compiled for
// them; shared by the SIMD targets of attention. Plain code: the kernels it calls carry their own
// target.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "base/kv_spec.h"

namespace penstock::kernels {

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
