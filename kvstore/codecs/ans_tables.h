// SPDX-License-Identifier: Apache-2.0
// The levels of ans-fine, ans-medium and ans-coarse, and the static tables by which their codes are
// written: part of the codecs' version. bench/ans_profile.cc makes the tables anew.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/kv_codec_ans.h"
#include "kvstore/codecs/codec_id.h"

namespace penstock::kvstore {

// As kernels/kv_codec_steps.h takes them.
struct AnsLevel {
  float keys, values;
};
// Of one of the three.
AnsLevel AnsLevelOf(CodecId id);

// A column's class says how large its codes are at most. Those of the last class are not coded but
// written as they are.
inline constexpr std::array<std::int32_t, 15> kAnsTops = {0,  1,  2,  3,  4,  6,  8,  11,
                                                          15, 20, 28, 40, 56, 80, 127};
inline constexpr std::uint8_t kAnsWide = 15;
inline constexpr std::size_t kAnsClasses = 16;
inline constexpr auto kAnsClassOfTop = [] {
  std::array<std::uint8_t, kernels::kAnsTopMax + 1> classes{};
  for (std::size_t top = 0; top < classes.size(); ++top) {
    while (kAnsTops[classes[top]] < static_cast<std::int32_t>(top)) ++classes[top];
  }
  return classes;
}();
// The first class that has room for a column whose largest code is `top`, at least 0.
constexpr std::uint8_t AnsClassOf(std::int32_t top) {
  return top <= kernels::kAnsTopMax ? kAnsClassOfTop[static_cast<std::size_t>(top)] : kAnsWide;
}

// Frequencies of codes 0 to kAnsTops[c] in class c, for 0 < c < kAnsWide, class after class.
inline constexpr std::size_t kAnsFrequencies = [] {
  std::size_t count = 0;
  for (std::size_t c = 1; c < kAnsWide; ++c) count += static_cast<std::size_t>(kAnsTops[c]) + 1;
  return count;
}();
std::span<const std::uint16_t, kAnsFrequencies> AnsFrequencies(bool keys);

// Classes of keys, then those of values.
const kernels::KvAnsTables& AnsTables();

}  // namespace penstock::kvstore
