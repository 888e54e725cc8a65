// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec_planes.h"

#include <vector>

#include "base/check.h"
#include "device/cpu_info.h"
#include "kernels/kv_codec_planes_targets.h"

namespace penstock::kernels {
namespace {

const KvPlanesTarget& Best() {
  static const KvPlanesTarget best = KvPlanesTargets().back();
  return best;
}

void CheckShape(const KvExponents& e) {
  CHECK(e.dtype == KvDtype::kF16 || e.dtype == KvDtype::kBF16);
  CHECK_EQ(e.n % 8, 0u);
  CHECK(e.period > 0 && (e.period % kKvChunkValues == 0 || e.period >= e.n));
}

}  // namespace

std::span<const KvPlanesTarget> KvPlanesTargets() {
  static const std::vector<KvPlanesTarget> targets = [] {
    std::vector<KvPlanesTarget> all = {kKvPlanesScalar};
    if (ThisCpu().avx2) all.push_back(kKvPlanesAvx2);
    return all;
  }();
  return targets;
}

std::size_t SplitExponents(const KvExponents& e, const std::byte* x, std::byte* rest,
                           std::byte* codes, std::byte* escapes) {
  CheckShape(e);
  return Best().split(e, x, rest, codes, escapes);
}

std::size_t JoinExponents(const KvExponents& e, const std::byte* rest, const std::byte* codes,
                          const std::byte* escapes, std::size_t escapes_bytes, std::byte* x) {
  CheckShape(e);
  return Best().join(e, rest, codes, escapes, escapes_bytes, x);
}

}  // namespace penstock::kernels
