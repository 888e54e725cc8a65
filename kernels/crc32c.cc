// SPDX-License-Identifier: Apache-2.0
#include "kernels/crc32c.h"

#include <vector>

#include "device/cpu_info.h"
#include "kernels/crc32c_targets.h"

namespace penstock::kernels {
namespace {

const Crc32cTarget& Best() {
  static const Crc32cTarget best = Crc32cTargets().back();
  return best;
}

}  // namespace

std::span<const Crc32cTarget> Crc32cTargets() {
  static const std::vector<Crc32cTarget> targets = [] {
    std::vector<Crc32cTarget> all = {kCrc32cScalar};
    // The faster walk goes last: AMD's prefetching follows one stream from page to page, and a
    // second one disturbs it (Walk of crc32c_simd.inc).
    const auto add = [&](const Crc32cTarget& one_stream, const Crc32cTarget& two_streams) {
      all.push_back(ThisCpu().amd ? two_streams : one_stream);
      all.push_back(ThisCpu().amd ? one_stream : two_streams);
    };
    if (ThisCpu().pclmul) add(kCrc32cPclmulOneStream, kCrc32cPclmul);
    if (ThisCpu().vpclmulqdq) add(kCrc32cVpclmulqdqOneStream, kCrc32cVpclmulqdq);
    return all;
  }();
  return targets;
}

std::uint32_t Crc32c(std::uint32_t crc, const std::byte* bytes, std::size_t n) {
  return Best().crc(crc, bytes, n);
}

std::uint32_t CopyCrc32c(std::uint32_t crc, const std::byte* from, std::size_t n, std::byte* to) {
  return Best().copy(crc, from, n, to);
}

}  // namespace penstock::kernels
