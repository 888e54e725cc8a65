// SPDX-License-Identifier: Apache-2.0
// The targets behind kernels/crc32c.h, for its dispatch and its tests. Contracts are there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace penstock::kernels {

struct Crc32cTarget {
  std::string_view name;
  std::uint32_t (*crc)(std::uint32_t crc, const std::byte* bytes, std::size_t n);
  std::uint32_t (*copy)(std::uint32_t crc, const std::byte* from, std::size_t n, std::byte* to);
};
// All this CPU can run: scalar first, best last.
std::span<const Crc32cTarget> Crc32cTargets();

extern const Crc32cTarget kCrc32cScalar;
extern const Crc32cTarget kCrc32cPclmul;
extern const Crc32cTarget kCrc32cPclmulOneStream;
extern const Crc32cTarget kCrc32cVpclmulqdq;
extern const Crc32cTarget kCrc32cVpclmulqdqOneStream;

// From this many bytes on, copies of SIMD targets go around the caches. Each then ends with a
// fence, which waits some 0.2 microseconds for its stores; with 2 KiB that is made good (AVX-512, 2
// MiB of second-level cache, a pool of 512 MiB walked in order: 5.1 GB/s through the caches, 6.1
// around them; with 1 KiB 6.0 and 4.3; with 64 KiB 4.3 and 8.3). Copying and reading back all of it
// costs less around the caches too, even when as little as 64 KiB lies between.
inline constexpr std::size_t kCrc32cStreamBytes = 2048;

// Polynomials over two elements, modulo the generator, whose coefficients without that of x^32 are
// 0x82f63b78: the one of x^i is bit 31 - i, so that the first bit of a byte is its highest power.
constexpr std::uint32_t Crc32cTimesX(std::uint32_t p) {
  return (p >> 1) ^ ((p & 1) != 0 ? 0x82f63b78u : 0u);
}

// Moves 16 bytes over the `bytes` bytes that follow, as carry-less multiplication wants it: the
// factor of the first eight, which are 64 bits further from the end, and of the second eight.
struct Crc32cFactor {
  std::uint64_t first, second;
};
consteval Crc32cFactor Crc32cOver(std::size_t bytes) {
  // The product of two numbers of 64 bits in this order of bits stands one bit too low in 128,
  // which multiplies by x: hence the - 1.
  std::uint32_t p = 0x80000000u;
  for (std::size_t i = 0; i < 8 * bytes - 1; ++i) p = Crc32cTimesX(p);
  Crc32cFactor factor{0, std::uint64_t{p} << 32};
  for (int i = 0; i < 64; ++i) p = Crc32cTimesX(p);
  factor.first = std::uint64_t{p} << 32;
  return factor;
}

}  // namespace penstock::kernels
