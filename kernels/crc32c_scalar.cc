// SPDX-License-Identifier: Apache-2.0
// The specification of kernels/crc32c.h. Every other target is tested against it.
#include <array>

#include "kernels/crc32c_targets.h"

namespace penstock::kernels {
namespace {

// What eight more bits make of a remainder whose last eight they meet.
constexpr std::array<std::uint32_t, 256> kNext = [] {
  std::array<std::uint32_t, 256> next{};
  for (std::uint32_t byte = 0; byte < next.size(); ++byte) {
    next[byte] = byte;
    for (int bit = 0; bit < 8; ++bit) next[byte] = Crc32cTimesX(next[byte]);
  }
  return next;
}();

std::uint32_t Step(std::uint32_t state, std::byte byte) {
  return kNext[(state ^ std::to_integer<std::uint32_t>(byte)) & 0xff] ^ (state >> 8);
}

std::uint32_t CrcScalar(std::uint32_t crc, const std::byte* bytes, std::size_t n) {
  std::uint32_t state = ~crc;
  for (std::size_t i = 0; i < n; ++i) state = Step(state, bytes[i]);
  return ~state;
}

std::uint32_t CopyScalar(std::uint32_t crc, const std::byte* from, std::size_t n, std::byte* to) {
  const volatile std::byte* const source = from;  // Loads each byte once.
  std::uint32_t state = ~crc;
  for (std::size_t i = 0; i < n; ++i) {
    const std::byte byte = source[i];
    to[i] = byte;
    state = Step(state, byte);
  }
  return ~state;
}

}  // namespace

const Crc32cTarget kCrc32cScalar = {"scalar", CrcScalar, CopyScalar};

}  // namespace penstock::kernels
