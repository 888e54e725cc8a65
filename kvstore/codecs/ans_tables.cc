// SPDX-License-Identifier: Apache-2.0
#include "kvstore/codecs/ans_tables.h"

#include <vector>

#include "base/check.h"

namespace penstock::kvstore {
namespace {

#include "kvstore/codecs/ans_frequencies.inc"

static_assert(std::size(kKeyFrequencies) == kAnsFrequencies);
static_assert(std::size(kValueFrequencies) == kAnsFrequencies);

// Of what takes no room: columns of zeros, and those that are not coded.
constexpr std::uint16_t kNothing[] = {1u << kernels::kAnsBits};

}  // namespace

AnsLevel AnsLevelOf(CodecId id) {
  // Twice the step is a bit less. Keys are finer than values: so halving the step of either lowers
  // the KL by about the same (SmolLM2 and Gemma 3).
  if (id == CodecId::kAnsFine) return {0.15f, 0.25f};
  if (id == CodecId::kAnsMedium) return {0.3f, 0.5f};
  CHECK(id == CodecId::kAnsCoarse);
  return {0.6f, 1.0f};
}

std::span<const std::uint16_t, kAnsFrequencies> AnsFrequencies(bool keys) {
  if (keys) return kKeyFrequencies;
  return kValueFrequencies;
}

const kernels::KvAnsTables& AnsTables() {
  static const kernels::KvAnsTables tables = [] {
    std::vector<std::span<const std::uint16_t>> classes;
    for (const bool keys : {true, false}) {
      std::span<const std::uint16_t> left = AnsFrequencies(keys);
      classes.emplace_back(kNothing);
      for (std::size_t c = 1; c < kAnsWide; ++c) {
        const auto count = static_cast<std::size_t>(kAnsTops[c]) + 1;
        classes.push_back(left.first(count));
        left = left.subspan(count);
      }
      classes.emplace_back(kNothing);
    }
    return kernels::MakeAnsTables(classes);
  }();
  return tables;
}

}  // namespace penstock::kvstore
