// SPDX-License-Identifier: Apache-2.0
#include "kvstore/client/codec_choice.h"

#include <gtest/gtest.h>

#include <vector>

#include "kvstore/client/store_fixture.h"

namespace penstock::kvstore {
namespace {

using transfer::Kind;

constexpr std::size_t kBlock = 1'000'000;

Duration Ns(double ns_per_byte) {
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double, std::nano>(ns_per_byte * kBlock));
}

struct Codec {
  CodecId id;
  double ratio;
  double encode;  // ns per byte.
  double decode;
};
// As measured of SmolLM2, of 16-bit floats of either kind.
const std::vector<Codec> kF16 = {{CodecId::kRaw, 1.0, 0.13, 0},
                                 {CodecId::kPlanes, 0.896, 0.45, 0.32},
                                 {CodecId::kPlanesZstd, 0.879, 1.25, 0.91}};
const std::vector<Codec> kBf16 = {{CodecId::kRaw, 1.0, 0.13, 0},
                                  {CodecId::kPlanes, 0.74, 0.45, 0.32},
                                  {CodecId::kPlanesZstd, 0.69, 1.25, 0.91}};

void Measure(CodecChoice& choice, const std::vector<Codec>& codecs) {
  for (const Codec& codec : codecs) {
    choice.Measured({.codec = codec.id,
                     .block_bytes = kBlock,
                     .frame_bytes = static_cast<std::size_t>(codec.ratio * kBlock),
                     .encode = Ns(codec.encode),
                     .decode = Ns(codec.decode)});
  }
}

TEST(CodecChoiceTest, IsWhatGetsABlockThereSoonest) {
  struct Came {
    Tier tier;
    Kind kind;
    double bytes_per_s;
    std::size_t bytes;
  };
  struct Case {
    const char* name;
    const std::vector<Codec>& codecs;
    std::vector<Came> came;
    CodecId want;
  };
  const std::size_t mb = 1'000'000;
  for (const Case& c : {
           Case{"nothing came: memory of this host", kBf16, {}, CodecId::kRaw},
           Case{"memory of this host", kBf16, {{Tier::kHost, Kind::kShm, 1e10, mb}}, CodecId::kRaw},
           Case{"a fast disk", kBf16, {{Tier::kDisk, Kind::kShm, 2e9, mb}}, CodecId::kRaw},
           Case{"a slow disk", kBf16, {{Tier::kDisk, Kind::kShm, 2e8, mb}}, CodecId::kPlanes},
           Case{"of little gain", kF16, {{Tier::kDisk, Kind::kShm, 2e8, mb}}, CodecId::kRaw},
           Case{"a very slow link", kBf16, {{Tier::kHost, Kind::kTcp, 1e7, mb}}, CodecId::kPlanes},
           Case{"mostly memory, some of a slow link",
                kBf16,
                {{Tier::kHost, Kind::kShm, 1e10, 100 * mb}, {Tier::kHost, Kind::kTcp, 2e8, mb}},
                CodecId::kRaw},
           Case{"mostly a slow link",
                kBf16,
                {{Tier::kHost, Kind::kShm, 1e10, mb}, {Tier::kHost, Kind::kTcp, 2e8, 100 * mb}},
                CodecId::kPlanes},
       }) {
    SCOPED_TRACE(c.name);
    CodecChoice choice;
    Measure(choice, c.codecs);
    for (const Came& came : c.came) {
      const double seconds = static_cast<double>(came.bytes) / came.bytes_per_s;
      choice.Came(came.tier, came.kind, came.bytes, FromSeconds(seconds));
    }
    EXPECT_EQ(ToString(choice.chosen()), ToString(c.want)) << choice.Describe();
  }
}

TEST(CodecChoiceTest, SaysItsNumbers) {
  CodecChoice choice;
  EXPECT_EQ(choice.chosen(), CodecId::kRaw);
  EXPECT_EQ(choice.SecondsOf(CodecId::kRaw), 0);
  Measure(choice, kBf16);
  choice.Came(Tier::kDisk, Kind::kShm, 1'000'000, std::chrono::milliseconds(5));
  EXPECT_NEAR(choice.SecondsOf(CodecId::kPlanes), (0.45 + 0.74 * 5 + 0.32) * 1e-9, 1e-12);
  EXPECT_EQ(choice.Describe(), "planes 4.47 ns/B, raw 5.13, planes+zstd 5.61");
}

// Only what is better by a tenth changes it, and old ways are forgotten as others bring more.
TEST(CodecChoiceTest, ChangesWithTheWaysButDoesNotFlicker) {
  CodecChoice choice;
  Measure(choice, kBf16);
  int changes = 0;
  CodecId last = choice.chosen();
  const auto come = [&](double bytes_per_s) {
    choice.Came(Tier::kHost, Kind::kTcp, 1'000'000,
                std::chrono::duration_cast<Duration>(
                    std::chrono::duration<double>(1'000'000 / bytes_per_s)));
    changes += choice.chosen() != last ? 1 : 0;
    last = choice.chosen();
  };
  for (int i = 0; i < 50; ++i) come(2e8);
  EXPECT_EQ(choice.chosen(), CodecId::kPlanes);
  EXPECT_EQ(changes, 1);
  // Where both are as good, whatever is used stays.
  for (int i = 0; i < 200; ++i) come(i % 2 == 0 ? 3.6e8 : 4.4e8);
  EXPECT_EQ(changes, 1);
  for (int i = 0; i < 50; ++i) come(5e9);
  EXPECT_EQ(choice.chosen(), CodecId::kRaw);
  EXPECT_EQ(changes, 2);
}

// What is chosen is what frames are made by, from then on, whatever was chosen before.
TEST_F(StoreTest, FramesAreByTheCodecThatWasChosen) {
  Start({}, {.choose = true, .zeros = true});
  const auto codec_of = [&](const Chain& chain) {
    const HostTier::Copy* const copy = node_->host->Peek(TestCopyKey(chain));
    return copy == nullptr ? "none" : ToString(static_cast<CodecId>(copy->codec));
  };
  const std::vector<Chain> before = TestChains(1, 3);
  EXPECT_EQ(worker_->keeper().choice().chosen(), CodecId::kRaw);
  worker_->Compute({before[0]});
  EXPECT_EQ(worker_->keeper().choice().SecondsOf(CodecId::kPlanes), 0);
  Settle();
  EXPECT_GT(worker_->keeper().choice().SecondsOf(CodecId::kPlanes), 0) << "the first was measured";
  EXPECT_EQ(codec_of(before[0]), "raw");
  // Where bytes come so slowly that nothing else counts, the smallest frame is best.
  worker_->keeper().Came(Tier::kRemote, transfer::Kind::kTcp, 1 << 20, seconds(1000));
  const CodecId chosen = worker_->keeper().choice().chosen();
  EXPECT_NE(chosen, CodecId::kRaw) << worker_->keeper().choice().Describe();
  const std::vector<Chain> after = TestChains(2, 6);
  worker_->Compute(after);
  Settle();
  for (const Chain& chain : after) EXPECT_EQ(codec_of(chain), ToString(chosen));
  EXPECT_EQ(codec_of(before[0]), "raw") << "no frame is made anew";
  // What leaves the pool, on another thread, goes by it, too.
  worker_->Compute({before[0], before[1]});
  worker_->Drop({before[0], before[1]}, /*demote=*/true);
  Settle();
  EXPECT_EQ(codec_of(before[1]), ToString(chosen));
}

}  // namespace
}  // namespace penstock::kvstore
