// SPDX-License-Identifier: Apache-2.0
// Entropy coding of small codes by asymmetric numeral systems (rANS) with tables that are known
// beforehand: a column's class says which. 32 states take turns, column by column, so that targets
// can work on as many codes at a time; all targets give the same bytes.
//
// A state is a number in [2^16, 2^32). A code of frequency f, of 2^10 in all, that begins at b among
// them, turns state x into (x / f << 10) + x % f + b; before that, x gives its low 16 bits away as a
// word where it would become too large. Codes are put in from the last to the first, and words
// are written towards the front, so that a reader goes forward: states first, then words, each
// when its state has become too small, those of lower columns first. Column c of every row belongs
// to state c mod 32. A reader ends with all words read and every state 2^16 as it began, or
// something is wrong.
//
// Little-endian. No pointer to bytes needs alignment. Pure functions; any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace penstock::kernels {

inline constexpr int kAnsBits = 10;
inline constexpr std::size_t kAnsLanes = 32;
inline constexpr std::uint32_t kAnsLow = 1u << 16;
inline constexpr std::int32_t kAnsTopMax = 127;

using KvAnsStates = std::array<std::uint32_t, kAnsLanes>;

// Of every class, by how it is used.
struct KvAnsTables {
  // [classes, 2^kAnsBits], by x % 2^kAnsBits: frequency | what is beyond its beginning << 11 |
  // (code + 128) << 21.
  std::vector<std::uint32_t> decode;
  // [classes, 256], by (code + 128) % 256: frequency | beginning << 11.
  std::vector<std::uint32_t> encode;
};
// `classes[i]`: the frequencies of codes 0 to top (at most kAnsTopMax) of class i, those of negative
// codes being the same; all of them at least 1, and 2^kAnsBits in all. A class of top 0 takes any
// code, costs nothing and gives 0 back.
KvAnsTables MakeAnsTables(std::span<const std::span<const std::uint16_t>> classes);

// Some rows of codes, [rows, dim]; dim is a multiple of 8. classes: [dim].
struct KvAnsRows {
  std::size_t rows, dim;
  const std::uint8_t* classes;
};
// Puts rows in before all that `states` have taken; begin with kAnsLow each. Each |code| is at most
// its class's top. Writes at most 2 * rows * dim bytes, up to `end`; returns where they begin.
std::byte* EncodeAns(const KvAnsTables& tables, const KvAnsRows& rows, const std::int16_t* codes,
                     KvAnsStates& states, std::byte* end);
// The reverse, from the first rows on. Reads words from `in` (not null) up to `end` and returns
// where it stopped; null when there were too few. Any states and words give some codes of their classes.
const std::byte* DecodeAns(const KvAnsTables& tables, const KvAnsRows& rows, KvAnsStates& states,
                           const std::byte* in, const std::byte* end, std::int16_t* codes);

}  // namespace penstock::kernels
