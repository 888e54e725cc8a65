// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_codec_planes.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <iostream>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "kernels/kv_codec_planes_targets.h"

namespace penstock::kernels {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::byte kGuard{0xA5};
constexpr KvDtype kDtypes[] = {KvDtype::kF16, KvDtype::kBF16};

struct Planes {
  Bytes rest, codes, escapes;
  std::size_t escaped = 0;
  bool operator==(const Planes&) const = default;
};

Planes Split(const KvPlanesTarget& target, const KvExponents& e, const Bytes& x) {
  Planes p{Bytes(e.n + 1, kGuard), Bytes(KvCodeBytes(e.dtype, e.n) + 1, kGuard),
           Bytes(e.n + 1, kGuard)};
  p.escaped = target.split(e, x.data(), p.rest.data(), p.codes.data(), p.escapes.data());
  return p;
}

Bytes FromHalves(const std::vector<std::uint16_t>& halves) {
  Bytes bytes(2 * halves.size());
  if (!halves.empty()) std::memcpy(bytes.data(), halves.data(), bytes.size());
  return bytes;
}

// Normal numbers of a spread of sizes, and now and then any pattern of bits.
Bytes RandomHalves(KvDtype dtype, std::size_t n, unsigned strange, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> halves(n);
  for (std::uint16_t& half : halves) {
    const float value = normal(random);
    half = dtype == KvDtype::kF16 ? static_cast<std::uint16_t>(ToF16(value))
                                  : static_cast<std::uint16_t>(ToBF16(value));
    if (strange > 0 && random() % strange == 0) half = static_cast<std::uint16_t>(random());
  }
  return FromHalves(halves);
}

void ExpectRoundTrip(const KvExponents& e, const Bytes& x) {
  const Planes want = Split(KvPlanesTargets()[0], e, x);
  EXPECT_EQ(want.rest.back(), kGuard);
  EXPECT_EQ(want.codes.back(), kGuard);
  EXPECT_EQ(want.escapes.back(), kGuard);
  Bytes guarded = x;
  guarded.push_back(kGuard);
  for (const KvPlanesTarget& target : KvPlanesTargets()) {
    SCOPED_TRACE(std::string(target.name));
    EXPECT_EQ(Split(target, e, x), want);
    Bytes back(x.size() + 1, kGuard);
    EXPECT_EQ(target.join(e, want.rest.data(), want.codes.data(), want.escapes.data(), want.escaped,
                          back.data()),
              want.escaped);
    EXPECT_EQ(back, guarded);
    if (want.escaped == 0) continue;
    EXPECT_EQ(target.join(e, want.rest.data(), want.codes.data(), want.escapes.data(),
                          want.escaped - 1, back.data()),
              want.escaped);
  }
}

TEST(KvPlanesTest, PrintsTargets) {
  for (const KvPlanesTarget& target : KvPlanesTargets()) {
    std::cout << "ran: " << target.name << "\n";
  }
  EXPECT_EQ(KvPlanesTargets()[0].name, "scalar");
}

TEST(KvPlanesTest, EveryLengthComesBack) {
  std::mt19937 random(1);
  for (const KvDtype dtype : kDtypes) {
    for (std::size_t n = 0; n <= 200; n += 8) {
      for (const unsigned strange : {0u, 1u, 2u, 20u}) {
        SCOPED_TRACE(absl::StrCat(std::string(ToString(dtype)), " n=", n, " strange=", strange));
        const int top = dtype == KvDtype::kF16 ? 17 : 129;
        const std::vector<std::uint8_t> firsts(
            32, static_cast<std::uint8_t>(top - KvExponentCodes(dtype) + 1));
        ExpectRoundTrip({dtype, n, firsts.data(), 32}, RandomHalves(dtype, n, strange, random));
      }
    }
  }
}

TEST(KvPlanesTest, EveryPatternComesBack) {
  std::vector<std::uint16_t> all(0x10000);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i * 40503);
  for (const KvDtype dtype : kDtypes) {
    for (const int first : {0, 1, 9, 25, 120, 241, 255}) {
      SCOPED_TRACE(absl::StrCat(std::string(ToString(dtype)), " first=", first));
      const std::vector<std::uint8_t> firsts(32, static_cast<std::uint8_t>(first));
      ExpectRoundTrip({dtype, all.size(), firsts.data(), 32}, FromHalves(all));
    }
  }
}

TEST(KvPlanesTest, FirstsGoByColumn) {
  std::mt19937 random(2);
  for (const KvDtype dtype : kDtypes) {
    for (const std::size_t period : {32u, 64u, 96u, 320u}) {
      std::vector<std::uint8_t> firsts(period);
      for (std::uint8_t& first : firsts) first = static_cast<std::uint8_t>(random());
      for (const std::size_t n : {period - 8, period, 3 * period + 16}) {
        SCOPED_TRACE(absl::StrCat("period=", period, " n=", n));
        ExpectRoundTrip({dtype, n, firsts.data(), period}, RandomHalves(dtype, n, 1, random));
      }
    }
  }
}

TEST(KvPlanesTest, NumbersOfFewExponentsNeedNoEscapes) {
  for (const KvDtype dtype : kDtypes) {
    std::vector<std::uint16_t> halves;
    const int bits = dtype == KvDtype::kF16 ? 10 : 7;
    for (int i = 0; i < 256; ++i) {
      halves.push_back(
          static_cast<std::uint16_t>((3 + i % KvExponentCodes(dtype)) << bits | i % 64));
    }
    const std::vector<std::uint8_t> firsts(32, 3);
    const KvExponents e{dtype, halves.size(), firsts.data(), 32};
    EXPECT_EQ(Split(KvPlanesTargets().back(), e, FromHalves(halves)).escaped, 0u);
  }
}

}  // namespace
}  // namespace penstock::kernels
