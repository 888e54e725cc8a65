// SPDX-License-Identifier: Apache-2.0
// 16-bit floats taken apart without loss: exponents as short codes, the rest as it is. Values of
// one matrix have few exponents, so most get a code; the others escape, a byte each.
//
// BF16: codes of 4 bits for 15 exponents that follow each other; the rest is a byte (sign, mantissa).
// F16:  codes of 3 bits for 7 exponents; the rest is a byte (the mantissa's low 8 bits) and 3 bits
//       (sign, mantissa's upper 2), which stand with the code in 6 bits: code << 3 | sign << 2 | m.
//
// Code c > 0 is the exponent firsts[i % period] + c - 1 for value i; code 0 says that the exponent
// is the next byte of the escapes. Values are taken in chunks of 32, the last one shorter. Of a
// chunk of m values
//   BF16: byte j of its m/2 bytes of codes holds codes j and j + m/2, low bits first;
//   F16:  its 3m/4 bytes are three planes of m/4; byte j of plane p holds the 6 bits of value
//         j + p * m/4, and above them bits 2p and 2p + 1 of those of value j + 3m/4.
// Every pattern of bits comes back, those of NaNs, infinities and subnormals too. All targets give
// the same bits. No pointer needs alignment. Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/kv_spec.h"

namespace penstock::kernels {

inline constexpr std::size_t kKvChunkValues = 32;

// Exponents that have codes.
constexpr int KvExponentCodes(KvDtype dtype) { return dtype == KvDtype::kBF16 ? 15 : 7; }
// Bytes of codes for n values.
constexpr std::size_t KvCodeBytes(KvDtype dtype, std::size_t n) {
  return dtype == KvDtype::kBF16 ? n / 2 : n / 4 * 3;
}
constexpr int KvExponentOf(KvDtype dtype, std::uint16_t bits) {
  return dtype == KvDtype::kBF16 ? bits >> 7 & 0xFF : bits >> 10 & 0x1F;
}

// Of `dtype` F16 or BF16; n is a multiple of 8. `firsts` has `period` bytes, a multiple of 32 or at
// least n; all values of it are fine.
struct KvExponents {
  KvDtype dtype;
  std::size_t n;
  const std::uint8_t* firsts;
  std::size_t period;
};

// rest: [n]; codes: KvCodeBytes; escapes: room for n. Returns how many of those it wrote.
std::size_t SplitExponents(const KvExponents& e, const std::byte* x, std::byte* rest,
                           std::byte* codes, std::byte* escapes);

// Returns how many escapes it read; more than escapes_bytes when there were too few, and x is then
// of no use.
std::size_t JoinExponents(const KvExponents& e, const std::byte* rest, const std::byte* codes,
                          const std::byte* escapes, std::size_t escapes_bytes, std::byte* x);

}  // namespace penstock::kernels
