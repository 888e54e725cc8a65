// SPDX-License-Identifier: Apache-2.0
// For tests of kernels/draw.h on any target: rows, what to ask of them, and the slow and obvious draw.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/draw.h"
#include "kernels/draw_weights.h"
#include "kernels/exp.h"

namespace penstock::kernels {

struct DrawCase {
  const char* name;
  DrawSpec spec;
};

inline const std::vector<DrawCase>& DrawCases() {
  static const std::vector<DrawCase> cases = {
      {"greedy", {}},
      {"greedy, sum", {.top_logits = 0}},
      {"greedy, most logits", {.top_logits = kTopLogitsMax}},
      {"greedy has no filters", {.top_k = 3, .top_p = 0.5, .uniform = 0.99}},
      {"plain", {.temperature = 1, .uniform = 0.37}},
      {"first", {.temperature = 1, .uniform = 0}},
      {"last", {.temperature = 1, .uniform = 1 - 0x1p-53}},
      {"hot", {.temperature = 100, .uniform = 0.6}},
      {"cold", {.temperature = 1e-3, .uniform = 0.6}},
      {"frozen", {.temperature = 1e-300, .uniform = 0.9}},
      {"min-p", {.temperature = 1.5, .min_p = 0.1, .uniform = 0.7}},
      {"min-p of all", {.temperature = 1, .min_p = 1, .uniform = 0.999}},
      {"top-k 1", {.temperature = 1, .top_k = 1, .uniform = 0.9}},
      {"top-k 7", {.temperature = 3, .top_k = 7, .uniform = 0.9}},
      {"top-k 600", {.temperature = 3, .top_k = 600, .uniform = 0.999}},
      {"top-k of all", {.temperature = 3, .top_k = 1 << 30, .uniform = 0.999}},
      {"top-p", {.temperature = 1, .top_p = 0.9, .uniform = 0.95, .top_logits = 3}},
      {"top-p, hot", {.temperature = 100, .top_p = 0.99, .uniform = 0.9999}},
      {"top-p tiny", {.temperature = 1, .top_p = 1e-12, .uniform = 0.95}},
      {"top-p near 1", {.temperature = 1, .top_p = 1 - 0x1p-53, .uniform = 1 - 0x1p-53}},
      {"top-k and top-p", {.temperature = 2, .top_k = 40, .top_p = 0.8, .uniform = 0.97}},
      {"top-k below top-p", {.temperature = 1, .top_k = 2, .top_p = 0.999, .uniform = 0.97}},
      {"all", {.temperature = 1.3, .top_k = 60, .top_p = 0.9, .min_p = 0.02, .uniform = 0.8}},
  };
  return cases;
}

struct DrawRow {
  std::string name;
  std::vector<float> logits;
};

// Rows of `vocab` logits: of models, with ties, and broken ones.
inline std::vector<DrawRow> DrawRows(std::size_t vocab, std::uint64_t seed) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<DrawRow> rows;
  const auto add = [&](const char* name, auto logit) {
    rows.push_back({name, {}});
    for (std::size_t i = 0; i < vocab; ++i) rows.back().logits.push_back(logit(i));
  };
  add("normal", [&](std::size_t) { return normal(random); });
  add("few values", [&](std::size_t) {
    const auto at = random() % 9;
    return at == 8 ? kNan : at == 7 ? -kInfinity : at == 6 ? -0.0f : static_cast<float>(at % 6);
  });
  add("ascending", [&](std::size_t i) { return static_cast<float>(i) / 64; });
  add("equal", [](std::size_t) { return -1.5f; });
  add("huge", [&](std::size_t) { return random() % 5 == 0 ? -3e38f : 3e38f; });
  add("near", [&](std::size_t) {  // One bit apart.
    return std::bit_cast<float>(0x41200000u + static_cast<std::uint32_t>(random() % 3));
  });
  add("one finite", [&](std::size_t i) { return i == vocab / 2 ? 2.0f : -kInfinity; });
  add("NaN", [](std::size_t) { return kNan; });
  add("-infinity", [](std::size_t i) { return i % 3 == 1 ? kNan : -kInfinity; });
  add("infinity", [&](std::size_t i) { return i + 1 == vocab ? kInfinity : 1.0f; });
  return rows;
}

// The tokens of a row in their order.
inline std::vector<std::int32_t> DrawOrder(const std::vector<float>& logits) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](std::int32_t a, std::int32_t b) {
    return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
  });
  return order;
}

inline std::int32_t SlowToken(const std::vector<float>& logits, std::vector<std::int32_t> order,
                              const DrawSpec& spec) {
  if (spec.temperature == 0) return order[0];
  const float max = logits[static_cast<std::size_t>(order[0])];
  const auto weight = [&](std::int32_t token) {
    return DrawWeight(logits[static_cast<std::size_t>(token)], max, spec.temperature);
  };
  const auto mass = [&] {
    std::uint64_t sum = 0;
    for (const std::int32_t token : order) sum += weight(token);
    return sum;
  };
  if (spec.top_k > 0 && static_cast<std::size_t>(spec.top_k) < order.size()) {
    order.resize(static_cast<std::size_t>(spec.top_k));
  }
  if (spec.top_p < 1) {
    const std::uint64_t wanted = NucleusMass(spec.top_p, mass());
    std::size_t taken = 0;
    for (std::uint64_t sum = 0; sum < wanted; ++taken) sum += weight(order[taken]);
    order.resize(taken);
  }
  const std::uint64_t least = LeastWeight(spec.min_p, weight(order[0]));
  std::erase_if(order, [&](std::int32_t token) { return weight(token) < least; });
  std::ranges::sort(order);
  std::uint64_t left = MassBefore(spec.uniform, mass());
  std::size_t i = 0;
  for (; left >= weight(order[i]); ++i) left -= weight(order[i]);
  return order[i];
}

inline Drawn SlowDraw(std::vector<float> logits, const DrawSpec& spec) {
  for (float& logit : logits) {
    if (std::isnan(logit)) logit = -std::numeric_limits<float>::infinity();
  }
  const std::vector<std::int32_t> order = DrawOrder(logits);
  const auto at = [&](std::int32_t token) { return logits[static_cast<std::size_t>(token)]; };
  Drawn drawn = {.max = at(order[0])};
  if (!std::isfinite(drawn.max)) return drawn;
  drawn.token = SlowToken(logits, order, spec);
  drawn.logit = at(drawn.token);
  if (spec.top_logits < 0) return drawn;
  for (std::size_t begin = 0; begin < logits.size(); begin += kSumExpPiece) {
    double sums[16] = {};
    for (std::size_t i = begin; i < std::min(begin + kSumExpPiece, logits.size()); ++i) {
      sums[i % 16] += static_cast<double>(Exp(logits[i] - drawn.max));
    }
    for (int distance = 8; distance > 0; distance /= 2) {
      for (int i = 0; i < distance; ++i) sums[i] += sums[i + distance];
    }
    drawn.exp_sum += sums[0];
  }
  for (const std::int32_t token : order) {
    if (drawn.top_count == spec.top_logits) break;
    drawn.top[drawn.top_count++] = {token, at(token)};
  }
  return drawn;
}

inline void ExpectSame(const Drawn& want, const Drawn& got) {
  const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
  EXPECT_EQ(want.token, got.token);
  EXPECT_EQ(bits(want.max), bits(got.max)) << want.max << " vs " << got.max;
  EXPECT_EQ(bits(want.logit), bits(got.logit)) << want.logit << " vs " << got.logit;
  EXPECT_EQ(want.exp_sum, got.exp_sum);
  ASSERT_EQ(want.top_count, got.top_count);
  for (std::int32_t i = 0; i < want.top_count; ++i) {
    EXPECT_EQ(want.top[i].token, got.top[i].token) << "place " << i;
    EXPECT_EQ(bits(want.top[i].logit), bits(got.top[i].logit)) << "place " << i;
  }
}

}  // namespace penstock::kernels
