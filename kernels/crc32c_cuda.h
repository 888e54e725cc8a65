// SPDX-License-Identifier: Apache-2.0
// CRC32C (kernels/crc32c.h) of what the lanes of a warp have in registers. For kernel files only.
//
// Bytes are a polynomial over two elements, modulo the generator, with the bits in the order of
// kernels/crc32c_targets.h. Their remainder, begun with 0 and not inverted, is linear: it is the
// sum, by xor, of those of their parts, each times x to the number of bits behind the part; zeros
// in front change nothing. So anybody may take any part, and sums in any order have the same bits.
// The whole checksum of n bytes is that remainder + ~0 x^(8 n) + ~0.
//
// All that is needed then are products with known powers of x, and those are looked up: of the 32
// bits of a factor, five at a time ask for what they turn to, which the lane of that number has in
// a register. Counted for H100, whose memory gives an SM 1.8 words of 4 bytes to copy per clock:
//
//   per word                                          words per clock by         which is
//   7 shuffles, 6 shifts, 4 xors of three             shuffles (32 lanes/clock)  4.6
//   8 tables of 16, one copy per bank of 32: 8 loads,
//     16 to form addresses, 4 xors                    integers (64 lanes/clock)  3.2
//   4 tables of 256 in shared memory: 4 loads, whose
//     fullest bank has 3.5 of 32 random words         loads (32 banks/clock)     2.3
//
// The first has no shared memory to fill either. Products with arbitrary factors take 32 steps of
// three instructions, as many as five words here.
#pragma once

#include <cstdint>

#include "kernels/crc32c_targets.h"
#include "kernels/gpu.h"

namespace penstock::kernels {

// What each value of five bits, the i-th five from bit 0 on, turns to times x^(8 * 2^k). The order
// of x is 2^31 - 1, so 31 powers make all.
struct CrcPowers {
  static constexpr int kPowers = 31;
  static constexpr int kParts = 7;  // The last has two bits.
  static constexpr std::uint32_t kOrder = 0x7fffffffu;
  std::uint32_t of[kPowers][kParts][32];

  // x^(8 * 2^k), from k - 1's: the square.
  static constexpr std::uint32_t Square(std::uint32_t p) {
    std::uint32_t product = 0;
    std::uint32_t shifted = p;  // Times x^i.
    for (int i = 0; i < 32; ++i) {
      if ((p << i & 0x80000000u) != 0) product ^= shifted;
      shifted = Crc32cTimesX(shifted);
    }
    return product;
  }
  static constexpr CrcPowers Make() {
    CrcPowers powers{};
    std::uint32_t power = 0x80000000u >> 8;
    for (auto& parts : powers.of) {
      std::uint32_t turned = power;  // What bit `bit` turns to: it is x^(31 - bit).
      for (int bit = 31; bit >= 0; --bit) {
        parts[bit / 5][1 << bit % 5] = turned;
        turned = Crc32cTimesX(turned);
      }
      for (auto& part : parts) {
        for (int value = 1; value < 32; ++value) {
          part[value] = part[value & (value - 1)] ^ part[value & -value];
        }
      }
      power = Square(power);
    }
    return powers;
  }
};

GPU_TABLE(CrcPowers, kCrcPowers) = CrcPowers::Make();

// A power as a lane has it.
struct CrcPower {
  std::uint32_t part[CrcPowers::kParts];
};

// x^(8 * 2^k).
GPU_DEVICE CrcPower LoadCrcPower(int k, unsigned lane) {
  CrcPower power;
  GPU_UNROLL(7)
  for (int i = 0; i < CrcPowers::kParts; ++i) power.part[i] = kCrcPowers.of[k][i][lane];
  return power;
}

// Every lane of the warp comes here, each with its own `a`.
GPU_DEVICE std::uint32_t CrcTimes(std::uint32_t a, const CrcPower& power) {
  std::uint32_t product = 0;
  GPU_UNROLL(7)
  for (int i = 0; i < CrcPowers::kParts; ++i) product ^= gpu::Pick(power.part[i], a >> (5 * i));
  return product;
}

// a with so many bytes behind it, or with -bytes fewer zeros. Every lane of the warp comes here,
// all with the same `bytes`.
GPU_DEVICE std::uint32_t CrcShift(std::uint32_t a, std::int32_t bytes, unsigned lane) {
  std::uint32_t left = static_cast<std::uint32_t>(bytes);
  if (bytes < 0) left += CrcPowers::kOrder;
  for (int k = 0; left != 0; ++k, left >>= 1) {
    if ((left & 1) != 0) a = CrcTimes(a, LoadCrcPower(k, lane));
  }
  return a;
}

}  // namespace penstock::kernels
