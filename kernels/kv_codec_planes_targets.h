// SPDX-License-Identifier: Apache-2.0
// The targets behind kernels/kv_codec_planes.h, for its dispatch and its tests. Contracts are there.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "kernels/kv_codec_planes.h"

namespace penstock::kernels {

struct KvPlanesTarget {
  std::string_view name;
  std::size_t (*split)(const KvExponents& e, const std::byte* x, std::byte* rest, std::byte* codes,
                       std::byte* escapes);
  std::size_t (*join)(const KvExponents& e, const std::byte* rest, const std::byte* codes,
                      const std::byte* escapes, std::size_t escapes_bytes, std::byte* x);
};
// All this CPU can run: scalar first, best last. The work is on bytes, in registers of 32 of them,
// and bound by memory from there on: there is no target beyond AVX2.
std::span<const KvPlanesTarget> KvPlanesTargets();

extern const KvPlanesTarget kKvPlanesScalar;
extern const KvPlanesTarget kKvPlanesAvx2;

}  // namespace penstock::kernels
