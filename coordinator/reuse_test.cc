// SPDX-License-Identifier: Apache-2.0
#include "coordinator/reuse.h"

#include <gtest/gtest.h>

#include <deque>
#include <limits>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"

namespace penstock::coordinator {
namespace {

constexpr std::uint32_t kBlockTokens = 32;
constexpr double kBlockBytes = 1e6;

// Blocks [first, end) at these nodes.
struct Had {
  std::uint32_t first;
  std::uint32_t end;
  std::vector<std::uint32_t> nodes;
  Tier tier = Tier::kHost;
};
StoreIndex::Found FoundOf(const std::vector<Had>& all) {
  StoreIndex::Found found;
  for (const Had& had : all) {
    StoreIndex::Run run = {had.first, had.end, static_cast<std::uint32_t>(found.holders.size()), 0};
    for (const std::uint32_t node : had.nodes) {
      found.holders.push_back(
          {.node = node,
           .tier = had.tier,
           .codec = 1,
           .bytes = static_cast<std::uint64_t>((had.end - had.first) * kBlockBytes)});
    }
    run.holders_end = static_cast<std::uint32_t>(found.holders.size());
    found.runs.push_back(run);
  }
  return found;
}

class ReuseTest : public ::testing::Test {
 protected:
  ReuseTest() {
    for (std::uint32_t i = 0; i < 4; ++i) {
      Worker& store = store_workers_.emplace_back();
      store.id = WorkerId{i};
      store.live = store.ready = true;
      store.host = 100 + i;
      stores_.push_back(&store);
    }
    worker_.id = WorkerId{9};
    worker_.host = 100;  // Of store 0.
    worker_.link_bytes_per_s = 1e9;
    options_.fetch_seconds = 0;
  }
  void Join(const std::vector<std::vector<Had>>& groups,
            const std::vector<std::uint32_t>& windows) {
    std::vector<StoredGroup> of;
    std::vector<StoreIndex::Found> found;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      of.push_back({.copy_spaces = {}, .window_tokens = windows[g], .block_bytes = 1});
      found.push_back(FoundOf(groups[g]));
    }
    JoinGroups(of, found, {}, stores_, options_.segments_max, reuse_);
    situation_ = {.reuse = &reuse_,
                  .stores = &stores_,
                  .means = &means_,
                  .block_tokens = kBlockTokens,
                  .blocks_max = 1000};
  }
  // "0-10 from 2 host; ...".
  std::string Fetches(std::uint32_t own_blocks, double block_seconds) {
    std::vector<Fetch> fetches;
    const Extension e =
        Extend(situation_, options_, worker_, {own_blocks, block_seconds}, &fetches);
    std::string text;
    double seconds = 0;
    std::uint32_t at = own_blocks;
    for (const Fetch& fetch : fetches) {
      absl::StrAppend(&text, text.empty() ? "" : "; ", fetch.first, "-", fetch.end, " from ",
                      IndexOf(fetch.store), " ", std::string(ToString(fetch.tier)));
      EXPECT_EQ(fetch.first, at) << "no holes";
      EXPECT_DOUBLE_EQ(fetch.compute_seconds, (fetch.end - fetch.first) * block_seconds);
      at = fetch.end;
      seconds += fetch.seconds;
    }
    EXPECT_EQ(e.end, at);
    EXPECT_NEAR(e.seconds, seconds, 1e-9 + 1e-9 * seconds);
    return text;
  }

  std::deque<Worker> store_workers_;
  StoreNodes stores_;
  Worker worker_;
  ReuseOptions options_;
  FetchMeans means_;
  Reuse reuse_;
  ReuseSituation situation_;
};

TEST_F(ReuseTest, OwnBlocksComeFirstThenWhatIsCheaperThanComputing) {
  Join({{{0, 20, {0}}, {20, 30, {1}, Tier::kDisk}, {40, 50, {0}}}}, {0});
  struct Case {
    std::uint32_t own;
    double block_seconds;  // Local memory takes 0.25 ms a block, another's disk 1 ms.
    const char* want;
  };
  for (const Case& c :
       {Case{0, 0.1, "0-20 from 0 host; 20-30 from 1 disk"}, Case{0, 0.0009, "0-20 from 0 host"},
        Case{0, 0.0002, ""}, Case{5, 0.1, "5-20 from 0 host; 20-30 from 1 disk"},
        Case{25, 0.1, "25-30 from 1 disk"}, Case{30, 0.1, ""}, Case{33, 0.1, ""},
        Case{44, 0.1, "44-50 from 0 host"}, Case{50, 0.1, ""}}) {
    EXPECT_EQ(Fetches(c.own, c.block_seconds), c.want) << c.own << " " << c.block_seconds;
  }
  situation_.blocks_max = 22;
  EXPECT_EQ(Fetches(0, 0.1), "0-20 from 0 host; 20-22 from 1 disk");
}

// What is slow to fetch is fetched all the same where much that is fast lies behind it.
TEST_F(ReuseTest, ASlowRunIsWorthTheFastOneBehindIt) {
  Join({{{0, 1, {1}, Tier::kRemote}, {1, 100, {0}}}}, {0});
  EXPECT_EQ(Fetches(0, 0.004), "0-1 from 1 remote; 1-100 from 0 host") << "5 ms for the first";
  Join({{{0, 100, {1}, Tier::kRemote}, {100, 101, {0}}}}, {0});
  EXPECT_EQ(Fetches(0, 0.002), "");
}

// A block of a remote tier takes 5 ms: beside computing up to twice as much pays; what would be there
// before a pass has begun is not computed beside, and pays no more than computing.
TEST_F(ReuseTest, BesideComputingASlowerWayPaysToo) {
  Join({{{0, 100, {1}, Tier::kRemote}}}, {0});
  for (const double block_seconds : {0.0051, 0.0049, 0.00251}) {
    EXPECT_EQ(Fetches(0, block_seconds), "0-100 from 1 remote") << block_seconds;
  }
  EXPECT_EQ(Fetches(0, 0.00249), "");
  // Of what is far too slow, none; nor of little, which comes before a pass would have begun.
  Join({{{0, 10, {0}}, {10, 100, {1}, Tier::kRemote}}}, {0});
  EXPECT_EQ(Fetches(0, 0.001), "0-10 from 0 host");
  Join({{{0, 3, {1}, Tier::kRemote}}}, {0});
  EXPECT_EQ(Fetches(0, 0.004), "");
}

TEST_F(ReuseTest, OfSeveralNodesTheOneThatHasItSoonest) {
  Join({{{0, 10, {1, 2, 0, 3}}}}, {0});
  EXPECT_EQ(Fetches(0, 0.1), "0-10 from 0 host") << "its own host's";
  store_workers_[0].fetch_bytes[static_cast<std::size_t>(Tier::kHost)] = 100'000'000;
  EXPECT_EQ(Fetches(0, 0.1), "0-10 from 1 host") << "25 ms of others' fetches first";
  worker_.fetch_bytes_per_s[{WorkerId{3}, 1}][static_cast<std::size_t>(Tier::kHost)] = 2e9;
  EXPECT_EQ(Fetches(0, 0.1), "0-10 from 3 host") << "measured";
  store_workers_[3].draining = true;
  Join({{{0, 10, {1, 2, 0, 3}}}}, {0});
  EXPECT_EQ(Fetches(0, 0.1), "0-10 from 1 host");
  store_workers_[1].ready = false;
  Join({{{0, 10, {1, 2}}}}, {0});
  EXPECT_EQ(Fetches(0, 0.1), "0-10 from 2 host");
}

TEST_F(ReuseTest, CopiesWithALossAreChosenWhereTheyAreAcceptedAndCheaper) {
  constexpr auto kInt8 = std::uint8_t{4};
  const auto had = [](std::uint32_t first, std::uint32_t end, std::uint8_t codec,
                      std::uint64_t block_bytes) {
    StoreIndex::Found found;
    found.holders = {
        {.node = 0, .tier = Tier::kHost, .codec = codec, .bytes = block_bytes * (end - first)}};
    found.runs = {{first, end, 0, 1}};
    return found;
  };
  const std::vector<StoredGroup> groups = {{.block_bytes = 1}};
  const std::vector<CodecLoss> with = {{1, LossClass::kExact}, {kInt8, LossClass::kKl3}};
  const auto fetches = [&](const std::vector<StoreIndex::Found>& found,
                           const std::vector<CodecLoss>& codecs) {
    JoinGroups(groups, found, codecs, stores_, options_.segments_max, reuse_);
    situation_ = {.reuse = &reuse_,
                  .stores = &stores_,
                  .means = &means_,
                  .block_tokens = kBlockTokens,
                  .blocks_max = 1000};
    std::vector<Fetch> plan;
    Extend(situation_, options_, worker_, {0, 1.0}, &plan);
    std::string text;
    for (const Fetch& fetch : plan) {
      absl::StrAppend(&text, text.empty() ? "" : "; ", fetch.first, "-", fetch.end, " ",
                      std::string(ToString(fetch.loss)), " by ", int{fetch.codec});
    }
    return text;
  };
  const StoreIndex::Found exact = had(0, 10, 1, 1000);
  EXPECT_EQ(fetches({exact}, with), "0-10 exact by 1");
  EXPECT_EQ(fetches({exact, had(0, 20, kInt8, 500)}, with), "0-20 kl3 by 4") << "half as large";
  EXPECT_EQ(fetches({exact, had(0, 20, kInt8, 2000)}, with), "0-10 exact by 1; 10-20 kl3 by 4");
  EXPECT_EQ(fetches({exact, had(0, 20, kInt8, 1000)}, with), "0-10 exact by 1; 10-20 kl3 by 4")
      << "of two that take as long, the one without loss";
  // Smaller, and slower: it must be decoded.
  worker_.fetch_bytes_per_s[{WorkerId{0}, 1}][static_cast<std::size_t>(Tier::kHost)] = 4e9;
  worker_.fetch_bytes_per_s[{WorkerId{0}, kInt8}][static_cast<std::size_t>(Tier::kHost)] = 1e9;
  EXPECT_EQ(fetches({exact, had(0, 20, kInt8, 500)}, with), "0-10 exact by 1; 10-20 kl3 by 4");
  worker_.fetch_bytes_per_s.clear();
  EXPECT_EQ(fetches({exact, had(0, 20, kInt8, 500)}, {{1, LossClass::kExact}}), "0-10 exact by 1")
      << "no record of that codec is inside the budget";
  EXPECT_EQ(fetches({exact, had(0, 20, 1, 500)}, with), "0-20 kl3 by 1")
      << "a lossless copy of what attended to a loss";
  EXPECT_EQ(fetches({exact, had(0, 20, 0, 500)}, with), "0-10 exact by 1")
      << "who knows by which codec";
  const std::vector<CodecLoss> worse = {{kInt8, LossClass::kKl2}};
  EXPECT_EQ(fetches({exact, had(0, 20, kInt8, 500)}, worse), "0-10 exact by 1");
  EXPECT_EQ(fetches({exact, {}, had(0, 20, kInt8, 500)}, worse), "0-20 kl2 by 4");
}

TEST_F(ReuseTest, RatesAreMeasuredOrThoseOfOthersOrGuessed) {
  Join({{{0, 10, {0}}}}, {0});
  Worker& store = store_workers_[1];
  const auto rate = [&](Tier tier, std::uint8_t codec = 1) {
    return FetchBytesPerS(situation_, options_, worker_, store, tier, codec);
  };
  EXPECT_EQ(rate(Tier::kHost), 1e9);
  EXPECT_EQ(rate(Tier::kRemote), 2e8);
  store.tier_bytes_per_s[static_cast<std::size_t>(Tier::kDisk)] = 3e8;
  EXPECT_EQ(rate(Tier::kDisk), 3e8) << "the node says so";
  store.host = worker_.host;
  EXPECT_EQ(rate(Tier::kHost), 4e9);
  store.host = worker_.host = 0;
  EXPECT_EQ(rate(Tier::kHost), 1e9) << "who does not say its host is on none";
  means_.Take(false, Tier::kDisk, 1, 5e8);
  EXPECT_EQ(rate(Tier::kDisk), 5e8);
  means_.Take(false, Tier::kDisk, 1, 1e9);
  EXPECT_NEAR(rate(Tier::kDisk), 5.5e8, 1);
  means_.Take(false, Tier::kDisk, 2, 4e8);
  EXPECT_EQ(rate(Tier::kDisk, 2), 4e8) << "of another codec";
  EXPECT_EQ(rate(Tier::kDisk, 3), 3e8) << "of one that nobody measured";
  EXPECT_EQ(rate(Tier::kDisk, 0), 4e8) << "of who knows which, the slowest";
  constexpr auto kDisk = static_cast<std::size_t>(Tier::kDisk);
  worker_.fetch_bytes_per_s[{store.id, 1}][kDisk] = 7e8;
  EXPECT_EQ(rate(Tier::kDisk), 7e8);
  EXPECT_EQ(rate(Tier::kDisk, 2), 4e8);
  worker_.fetch_bytes_per_s[{store.id, 2}][kDisk] = 6e8;
  worker_.fetch_bytes_per_s[{WorkerId{2}, 2}][kDisk] = 1e8;
  EXPECT_EQ(rate(Tier::kDisk, 2), 6e8);
  EXPECT_EQ(rate(Tier::kDisk, 0), 6e8);
  worker_.link_bytes_per_s = std::numeric_limits<double>::min();
  EXPECT_EQ(rate(Tier::kHost), 1) << "nonsense does no harm";
  EXPECT_EQ(Fetches(0, 0.1), "");
}

TEST_F(ReuseTest, AWindowNeedsOnlyTheBlocksThatTheNextTokenSees) {
  // A window of 100 tokens: of a prefix of n blocks the last four (3 and a part).
  Join({{{0, 50, {0}}}, {{10, 20, {0}}, {41, 44, {0}}}}, {0, 100});
  EXPECT_EQ(Fetches(0, 0.1), "0-20 from 0 host") << "44 would need block 40, 50 all behind 46";
  Join({{{0, 50, {0}}}, {{10, 20, {0}}, {40, 44, {0}}}}, {0, 100});
  EXPECT_EQ(Fetches(0, 0.1), "0-44 from 0 host");
  std::vector<Fetch> fetches;
  Extend(situation_, options_, worker_, {0, 0.1}, &fetches);
  EXPECT_EQ(fetches[0].bytes, static_cast<std::uint64_t>(48 * kBlockBytes));
  EXPECT_EQ(Fetches(42, 0.1), "42-44 from 0 host") << "it has what the window sees before";
  // From one node, all groups of a block.
  Join({{{0, 50, {0, 1}}}, {{40, 50, {1}}}}, {0, 100});
  EXPECT_EQ(Fetches(0, 0.1), "0-40 from 0 host; 40-50 from 1 host");
  // Full groups that are not together anywhere.
  Join({{{0, 50, {0}}}, {{0, 50, {1}}}}, {0, 0});
  EXPECT_EQ(Fetches(0, 0.1), "");
  // Windows alone count as full.
  Join({{{0, 50, {0}}}, {{0, 30, {0}}}}, {100, 200});
  EXPECT_EQ(Fetches(0, 0.1), "0-30 from 0 host");
}

// One node, two groups, random holes: against the rule of prefixes, tried for every length.
TEST_F(ReuseTest, WindowsAgreeWithModel) {
  for (std::uint32_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    const auto draw = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
    const std::uint32_t window = 1 + draw(300);
    std::set<std::uint32_t> full, windowed;
    const auto runs = [&](std::set<std::uint32_t>& held, std::uint32_t holes) {
      std::vector<Had> all;
      for (std::uint32_t b = 0; b < 60; ++b) {
        if (draw(100) < holes) continue;
        held.insert(b);
        if (all.empty() || all.back().end != b) all.push_back({b, b, {0}});
        ++all.back().end;
      }
      return all;
    };
    const std::vector<Had> a = runs(full, draw(5)), b = runs(windowed, draw(40));
    Join({a, b}, {0, window});
    const std::uint32_t own = draw(3) == 0 ? draw(60) : 0;
    std::uint32_t want = own;
    for (std::uint32_t n = own + 1; n <= 60 && full.contains(n - 1); ++n) {
      const std::uint32_t position = n * kBlockTokens;
      std::uint32_t first = position < window ? 0 : (position - window + 1) / kBlockTokens;
      bool usable = true;
      for (first = std::max(first, own); first < n; ++first) usable &= windowed.contains(first);
      if (usable) want = n;
    }
    EXPECT_EQ(Extend(situation_, options_, worker_, {own, 100}, nullptr).end, want);
  }
}

// Of workers that have measured nothing the estimate is what is decided then.
TEST_F(ReuseTest, EstimatesAgree) {
  options_.fetch_seconds = 0.0005;
  Join({{{0, 20, {1}}, {20, 30, {0}, Tier::kDisk}, {30, 60, {0, 2}}}}, {0});
  const ReuseEstimates estimates(situation_, options_);
  for (const std::uint64_t host : {0, 100, 102, 999}) {
    for (const std::uint32_t own : {0u, 20u, 30u, 60u, 61u}) {
      for (const double block_seconds : {0.1, 0.0009, 0.0001}) {
        worker_.host = host;
        const Behind behind = {own, block_seconds};
        const Extension exact = Extend(situation_, options_, worker_, behind, nullptr);
        const Extension estimate = estimates.Extend(host, behind);
        EXPECT_EQ(estimate.end, exact.end) << host << " " << own << " " << block_seconds;
        EXPECT_NEAR(estimate.seconds, exact.seconds, 0.0011);
      }
    }
  }
}

}  // namespace
}  // namespace penstock::coordinator
