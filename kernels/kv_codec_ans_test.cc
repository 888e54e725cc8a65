// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec_ans.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/kv_codec_ans_targets.h"

namespace penstock::kernels {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::byte kGuard{0xA5};
constexpr int kTops[] = {0, 1, 2, 5, 40, 127};
constexpr std::size_t kClasses = std::size(kTops);

// Frequencies that fall off from 0 on, as steeply as `top` asks for.
std::vector<std::uint16_t> Falling(int top) {
  std::vector<std::uint16_t> frequencies(static_cast<std::size_t>(top) + 1, 1);
  int left = 1024 - (2 * top + 1);
  for (int code = top; code > 0; --code) {
    const int more = static_cast<int>(left * 0.4 * code / (top * (top + 1.0)));
    frequencies[static_cast<std::size_t>(code)] += static_cast<std::uint16_t>(more);
    left -= 2 * more;
  }
  frequencies[0] += static_cast<std::uint16_t>(left);
  return frequencies;
}

const KvAnsTables& Tables() {
  static const KvAnsTables tables = [] {
    std::vector<std::vector<std::uint16_t>> all;
    for (const int top : kTops) all.push_back(Falling(top));
    const std::vector<std::span<const std::uint16_t>> spans(all.begin(), all.end());
    return MakeAnsTables(spans);
  }();
  return tables;
}

struct Coded {
  KvAnsStates states;
  Bytes words;
  bool operator==(const Coded&) const = default;
};

Coded Encode(const KvAnsTarget& target, const KvAnsRows& rows,
             const std::vector<std::int16_t>& codes) {
  Coded coded;
  coded.states.fill(kAnsLow);
  Bytes room(2 * rows.rows * rows.dim + 1, kGuard);
  std::byte* const end = room.data() + room.size() - 1;
  std::byte* const begin = target.encode(Tables(), rows, codes.data(), coded.states, end);
  EXPECT_EQ(room.back(), kGuard);
  EXPECT_GE(begin, room.data());
  coded.words.assign(begin, end);
  return coded;
}

struct Decoded {
  bool ends = false;  // With all words read.
  KvAnsStates states;
  std::vector<std::int16_t> codes;
};

Decoded Decode(const KvAnsTarget& target, const KvAnsRows& rows, const Coded& coded) {
  Decoded decoded{false, coded.states, std::vector<std::int16_t>(rows.rows * rows.dim + 1, 777)};
  // Of exactly the size, so that a step too far is seen.
  Bytes words(1);
  words.insert(words.end(), coded.words.begin(), coded.words.end());
  const std::byte* const end = words.data() + words.size();
  const std::byte* const at =
      target.decode(Tables(), rows, decoded.states, words.data() + 1, end, decoded.codes.data());
  decoded.ends = at == end;
  EXPECT_EQ(decoded.codes.back(), 777);
  decoded.codes.pop_back();
  if (at == nullptr) decoded.codes.clear();
  return decoded;
}

std::vector<std::uint8_t> RandomClasses(std::size_t dim, std::mt19937& random) {
  std::vector<std::uint8_t> classes(dim);
  for (std::uint8_t& c : classes) c = static_cast<std::uint8_t>(random() % kClasses);
  return classes;
}

// Codes inside their classes; where `extreme`, all of them at the rarest.
std::vector<std::int16_t> RandomCodes(const KvAnsRows& rows, bool extreme, std::mt19937& random) {
  std::vector<std::int16_t> codes(rows.rows * rows.dim);
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const int top = kTops[rows.classes[i % rows.dim]];
    const int code = extreme ? (random() % 2 == 0 ? top : -top)
                             : static_cast<int>(std::lround(normal(random) * top / 3));
    codes[i] = static_cast<std::int16_t>(std::clamp(code, -top, top));
  }
  return codes;
}

// Calls check(rows, codes) for all of them.
template <typename Check>
void ForAll(Check check) {
  std::mt19937 random(1);
  for (const std::size_t dim : {8u, 16u, 24u, 32u, 40u, 48u, 64u, 96u, 128u, 256u}) {
    for (const std::size_t n : {1u, 2u, 3u, 16u, 32u, 64u}) {
      for (const bool extreme : {false, true}) {
        const std::vector<std::uint8_t> classes = RandomClasses(dim, random);
        const KvAnsRows rows{n, dim, classes.data()};
        SCOPED_TRACE(absl::StrCat("[", n, ", ", dim, "]", extreme ? " extreme" : ""));
        check(rows, RandomCodes(rows, extreme, random));
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(KvAnsTest, PrintsTargets) {
  for (const KvAnsTarget& target : KvAnsTargets()) std::cout << "ran: " << target.name << "\n";
  EXPECT_EQ(KvAnsTargets()[0].name, "scalar");
}

TEST(KvAnsTest, EveryTargetGivesCodesBackAndTheSameBytes) {
  ForAll([](const KvAnsRows& rows, const std::vector<std::int16_t>& codes) {
    const Coded want = Encode(KvAnsTargets()[0], rows, codes);
    for (const KvAnsTarget& target : KvAnsTargets()) {
      SCOPED_TRACE(std::string(target.name));
      EXPECT_EQ(Encode(target, rows, codes), want);
      const Decoded back = Decode(target, rows, want);
      EXPECT_EQ(back.codes, codes);
      EXPECT_TRUE(back.ends);
      EXPECT_TRUE(std::ranges::all_of(back.states, [](auto x) { return x == kAnsLow; }));
    }
  });
}

// Several heads in one stream: encoded from the last to the first, decoded from the first.
TEST(KvAnsTest, PiecesFollowEachOther) {
  std::mt19937 random(2);
  for (const KvAnsTarget& target : KvAnsTargets()) {
    const std::vector<std::uint8_t> classes = RandomClasses(64, random);
    const KvAnsRows all{32, 64, classes.data()}, half{16, 64, classes.data()};
    const std::vector<std::int16_t> codes = RandomCodes(all, false, random);
    const Coded want = Encode(target, all, codes);
    Bytes room(2 * codes.size());
    std::byte* const end = room.data() + room.size();
    KvAnsStates states;
    states.fill(kAnsLow);
    std::byte* at = target.encode(Tables(), half, codes.data() + 16 * 64, states, end);
    at = target.encode(Tables(), half, codes.data(), states, at);
    EXPECT_EQ(states, want.states);
    EXPECT_EQ(Bytes(at, end), want.words);
    std::vector<std::int16_t> back(codes.size());
    const std::byte* in = target.decode(Tables(), half, states, at, end, back.data());
    in = target.decode(Tables(), half, states, in, end, back.data() + 16 * 64);
    EXPECT_EQ(in, end);
    EXPECT_EQ(back, codes);
  }
}

// What no encoder made, and streams cut short or gone on with: targets still agree.
TEST(KvAnsTest, TargetsAgreeOnAnyWords) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(round);
    const std::vector<std::uint8_t> classes = RandomClasses(32, random);
    const KvAnsRows rows{8, 32, classes.data()};
    Coded coded = Encode(KvAnsTargets()[0], rows, RandomCodes(rows, false, random));
    if (round % 3 == 0) {
      coded.words.resize(random() % (coded.words.size() + 40));
    } else {
      for (std::byte& byte : coded.words) byte = static_cast<std::byte>(random());
    }
    if (round % 3 == 2) {
      for (std::uint32_t& state : coded.states) state = static_cast<std::uint32_t>(random());
    }
    const Decoded want = Decode(KvAnsTargets()[0], rows, coded);
    for (std::size_t i = 0; i < want.codes.size(); ++i) {
      ASSERT_LE(std::abs(want.codes[i]), kTops[classes[i % 32]]);
    }
    for (const KvAnsTarget& target : KvAnsTargets().subspan(1)) {
      SCOPED_TRACE(std::string(target.name));
      const Decoded got = Decode(target, rows, coded);
      ASSERT_EQ(got.codes, want.codes);
      ASSERT_EQ(got.ends, want.ends);
      if (!want.codes.empty()) {
        ASSERT_EQ(got.states, want.states);
      }
    }
  }
}

// A class of nothing but zeros takes what other codes a column has, and no room.
TEST(KvAnsTest, ZeroClassCostsNothing) {
  const std::vector<std::uint8_t> classes(64, 0);
  const KvAnsRows rows{32, 64, classes.data()};
  std::vector<std::int16_t> codes(32 * 64);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::int16_t>(i * 31);
  for (const KvAnsTarget& target : KvAnsTargets()) {
    const Coded coded = Encode(target, rows, codes);
    EXPECT_TRUE(coded.words.empty());
    EXPECT_EQ(Decode(target, rows, coded).codes, std::vector<std::int16_t>(32 * 64));
  }
}

TEST(KvAnsTest, ComesCloseToTheEntropy) {
  std::mt19937 random(4);
  const std::vector<std::uint16_t> frequencies = Falling(40);
  std::vector<double> weights;
  double entropy = 0;
  for (int code = -40; code <= 40; ++code) {
    weights.push_back(frequencies[static_cast<std::size_t>(std::abs(code))] / 1024.0);
    entropy -= weights.back() * std::log2(weights.back());
  }
  std::discrete_distribution<int> draw(weights.begin(), weights.end());
  const std::vector<std::uint8_t> classes(64, 4);
  const KvAnsRows rows{1024, 64, classes.data()};
  std::vector<std::int16_t> codes(rows.rows * rows.dim);
  for (std::int16_t& code : codes) code = static_cast<std::int16_t>(draw(random) - 40);
  const double bits =
      8.0 * static_cast<double>(Encode(KvAnsTargets().back(), rows, codes).words.size());
  EXPECT_NEAR(bits / static_cast<double>(codes.size()) / entropy, 1, 0.01);
}

}  // namespace
}  // namespace penstock::kernels
