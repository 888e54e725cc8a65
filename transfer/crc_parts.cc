// SPDX-License-Identifier: Apache-2.0
#include "transfer/crc_parts.h"

#include <array>

namespace penstock::transfer {
namespace {

// Polynomials over GF(2) modulo that of CRC32C, whose highest power is the lowest bit.
constexpr std::uint32_t kModulus = 0x82f63b78;
constexpr std::uint32_t kOne = std::uint32_t{1} << 31;

constexpr std::uint32_t Times(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (; a != 0; a <<= 1) {
    if ((a & kOne) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kModulus : b >> 1;
  }
  return product;
}

// x to the power of 8 * 2^i.
constexpr std::array<std::uint32_t, 64> kBytePowers = [] {
  std::array<std::uint32_t, 64> powers{};
  std::uint32_t power = kOne >> 8;
  for (std::uint32_t& p : powers) {
    p = power;
    power = Times(power, power);
  }
  return powers;
}();

}  // namespace

std::uint32_t JoinCrc32c(std::uint32_t a, std::uint32_t b, std::uint64_t b_bytes) {
  for (std::size_t i = 0; b_bytes != 0; b_bytes >>= 1, ++i) {
    if ((b_bytes & 1) != 0) a = Times(kBytePowers[i], a);
  }
  return a ^ b;
}

}  // namespace penstock::transfer
