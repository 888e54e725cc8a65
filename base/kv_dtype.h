// SPDX-License-Identifier: Apache-2.0
// The number types of KV pages. Apart from base/kv_spec.h for kernel files, which take no library in.
#pragma once

#include <cstdint>

namespace penstock {

enum class KvDtype : std::uint8_t { kF16, kBF16, kF32, kInt8 };
inline constexpr KvDtype kKvDtypes[] = {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32,
                                        KvDtype::kInt8};

}  // namespace penstock
