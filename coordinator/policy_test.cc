// SPDX-License-Identifier: Apache-2.0
#include "coordinator/policy.h"

#include <gtest/gtest.h>

#include <array>
#include <random>

#include "absl/strings/str_cat.h"

namespace penstock::coordinator {
namespace {

using namespace std::chrono_literals;

const MonoTime kStart = MonoTime() + 100s;

// So many prefill workers with ids 0, 1, ..., then so many decode workers.
struct Cluster {
  Cluster(std::size_t prefills, std::size_t decodes) : workers(prefills + decodes) {
    for (std::size_t i = 0; i < workers.size(); ++i) {
      Worker& w = workers[i];
      w.id = WorkerId{static_cast<std::uint32_t>(i)};
      w.live = w.ready = true;
      w.info.role = i < prefills ? Role::kPrefill : Role::kDecode;
      w.blocks_total = 1000;
      w.sequences_max = 16;
      w.prefill_tokens_per_s = 1000;
      w.link_bytes_per_s = 1e8;
      w.step_seconds = 0.02;
      (i < prefills ? prefill : decode).push_back(&w);
    }
    usable.assign(workers.size(), 0);
  }
  // So slow at it that decode workers do not prefill.
  void OnlyDecode() {
    for (Worker& w : workers) {
      if (w.info.role == Role::kDecode) w.prefill_tokens_per_s = 1;
    }
  }
  Work Of(std::uint32_t prompt_tokens) const {
    return {.prompt_tokens = prompt_tokens,
            .block_tokens = 32,
            .blocks = prompt_tokens / 32 + 1,
            .kv_bytes_per_token = 10000,
            .usable_blocks = usable,
            .excluded = excluded};
  }
  Decision Choose(std::uint32_t prompt_tokens, MonoTime now = kStart) {
    return policy->Choose(Of(prompt_tokens), prefill, decode, now);
  }
  void Book(const Candidate& c, std::uint32_t prompt_tokens) {
    Worker& p = workers[IndexOf(c.prefill)];
    Worker& d = workers[IndexOf(c.decode)];
    p.BeginPrefill(prompt_tokens - 1 - c.prefill_reused_tokens, kStart);
    d.sequences.Add(1);
    d.blocks.Add(prompt_tokens / 32 + 1);
    p.last_chosen = d.last_chosen = ++decisions;
  }

  std::vector<Worker> workers;
  std::vector<const Worker*> prefill;
  std::vector<const Worker*> decode;
  std::vector<std::uint32_t> usable;
  std::vector<WorkerId> excluded;
  std::unique_ptr<Policy> policy = Policy::Make({});
  std::uint64_t decisions = 0;
};

TEST(PolicyTest, NamesAreKnown) {
  EXPECT_NE(Policy::Make({.name = "round-robin"}), nullptr);
  EXPECT_NE(Policy::Make({.name = "least-loaded"}), nullptr);
  EXPECT_EQ(Policy::Make({.name = "fastest"}), nullptr);
}

TEST(PolicyTest, EqualWorkersShareEqually) {
  for (const char* name : {"cost", "least-loaded", "round-robin"}) {
    SCOPED_TRACE(name);
    Cluster cluster(4, 4);
    cluster.OnlyDecode();
    cluster.policy = Policy::Make({.name = name, .prefill_backlog_seconds = 1e9});
    std::array<int, 8> chosen = {};
    for (int i = 0; i < 32; ++i) {
      const Decision decision = cluster.Choose(512);
      ASSERT_FALSE(decision.candidates.empty());
      const Candidate& best = decision.candidates[0];
      ASSERT_FALSE(best.local());
      ++chosen[IndexOf(best.prefill)];
      ++chosen[IndexOf(best.decode)];
      cluster.Book(best, 512);
    }
    for (const int n : chosen) EXPECT_EQ(n, 8);
  }
}

// One at a time, each done before the next: nothing is in flight, and still the twin gets its half.
TEST(PolicyTest, EqualWorkersShareEquallyWhenIdle) {
  Cluster cluster(2, 2);
  std::array<int, 4> chosen = {};
  for (int i = 0; i < 40; ++i) {
    const Candidate best = cluster.Choose(512).candidates.at(0);
    ++chosen[IndexOf(best.prefill)];
    ++chosen[IndexOf(best.decode)];
    cluster.workers[IndexOf(best.prefill)].last_chosen = ++cluster.decisions;
    cluster.workers[IndexOf(best.decode)].last_chosen = cluster.decisions;
  }
  for (const int n : chosen) EXPECT_EQ(n, 20);
}

TEST(PolicyTest, AReusedPrefixIsWorthItsComputeAndNoMore) {
  Cluster cluster(2, 1);
  cluster.usable[1] = 10;  // 320 of 2,047 tokens: 0.32 s.
  EXPECT_EQ(cluster.Choose(2048).candidates[0].prefill, WorkerId{1});
  EXPECT_EQ(cluster.Choose(2048).candidates[0].prefill_reused_tokens, 320u);
  cluster.workers[1].BeginPrefill(300, kStart);
  EXPECT_EQ(cluster.Choose(2048).candidates[0].prefill, WorkerId{1});
  cluster.workers[1].BeginPrefill(100, kStart);
  EXPECT_EQ(cluster.Choose(2048).candidates[0].prefill, WorkerId{0});
  EXPECT_EQ(cluster.Choose(2048, kStart + 150ms).candidates[0].prefill, WorkerId{1})
      << "0.1 s of its work are done by then";
}

// The conversation trace: all prompts share their first block.
TEST(PolicyTest, ASharedFirstBlockDoesNotGatherAllOnOneWorker) {
  Cluster cluster(4, 4);
  cluster.OnlyDecode();
  cluster.policy = Policy::Make({.prefill_backlog_seconds = 1e9});
  cluster.usable[0] = 1;
  std::array<int, 8> chosen = {};
  for (int i = 0; i < 40; ++i) {
    const Candidate best = cluster.Choose(512).candidates.at(0);
    ++chosen[IndexOf(best.prefill)];
    cluster.Book(best, 512);
  }
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(chosen[static_cast<std::size_t>(i)], 10, 1);
}

TEST(PolicyTest, ShortOrCachedPromptsPrefillWhereTheyDecode) {
  Cluster cluster(2, 2);
  cluster.workers[0].BeginPrefill(200, kStart);
  cluster.workers[1].BeginPrefill(200, kStart);
  for (Worker& w : cluster.workers) {
    if (w.info.role == Role::kDecode) w.sequences.Add(4);
  }
  EXPECT_TRUE(cluster.Choose(64).candidates[0].local());
  EXPECT_FALSE(cluster.Choose(2048).candidates[0].local());
  cluster.usable[3] = 62;
  const Candidate cached = cluster.Choose(2048).candidates[0];
  EXPECT_TRUE(cached.local());
  EXPECT_EQ(cached.decode, WorkerId{3});
  EXPECT_EQ(cached.decode_reused_tokens, 1984u);
  EXPECT_EQ(cached.terms.transfer, 0);
}

TEST(PolicyTest, LongPromptsGoToPrefillWorkersThoughTheirRatesAreGuesses) {
  Cluster cluster(2, 2);
  // What workers that start at once measure of themselves.
  for (std::size_t w : {2, 3}) cluster.workers[w].prefill_tokens_per_s = 1350;
  EXPECT_FALSE(cluster.Choose(3000).candidates[0].local());
  EXPECT_TRUE(cluster.Choose(300).candidates[0].local());
  // Where they are so busy that it is much later, decode workers help.
  for (std::size_t w : {0, 1}) cluster.workers[w].BeginPrefill(1900, kStart);
  EXPECT_TRUE(cluster.Choose(3000).candidates[0].local());
}

TEST(PolicyTest, ATransferCostsWhatComputeDoesNotHide) {
  Cluster cluster(1, 1);
  // 2,047 tokens: 2.047 s of compute; 20.47 MB: 0.2047 s.
  const CostTerms hidden = cluster.Choose(2048).candidates[0].terms;
  EXPECT_NEAR(hidden.transfer, 0.2047 / 24, 1e-9);
  cluster.workers[0].link_bytes_per_s = 1e6;
  const Decision slow = cluster.Choose(2048);
  for (const Candidate& c : slow.candidates) {
    if (!c.local()) {
      EXPECT_NEAR(c.terms.transfer, 20.47 - 2.047, 1e-9);
    }
  }
  EXPECT_TRUE(slow.candidates[0].local());
  cluster.workers[0].link_bytes_per_s = 1e8;
  cluster.workers[1].bytes_in = 300'000'000;
  for (const Candidate& c : cluster.Choose(2048).candidates) {
    if (!c.local()) {
      EXPECT_NEAR(c.terms.transfer, 3 + 0.2047 - 2.047, 1e-9);
    }
  }
}

TEST(PolicyTest, APairIsNoFasterThanItMeasured) {
  Cluster cluster(1, 2);
  cluster.OnlyDecode();
  // One pair is between hosts: 20.47 MB at 1 MB/s.
  const PairRates rates = {{{WorkerId{0}, WorkerId{1}}, 1e6}, {{WorkerId{0}, WorkerId{2}}, 1e9}};
  Work work = cluster.Of(2048);
  work.rates = &rates;
  const Decision decision = cluster.policy->Choose(work, cluster.prefill, cluster.decode, kStart);
  EXPECT_EQ(decision.candidates[0].decode, WorkerId{2});
  for (const Candidate& c : decision.candidates) {
    if (c.local()) continue;
    EXPECT_NEAR(c.terms.transfer, c.decode == WorkerId{1} ? 20.47 - 2.047 : 0.2047 / 24, 1e-9);
  }
}

TEST(PolicyTest, WhoHasNoRoomIsNoCandidate) {
  struct Case {
    const char* name;
    void (*change)(Worker&);
    bool also_prefill;
  };
  for (const Case& c : {Case{"dead", [](Worker& w) { w.live = false; }, true},
                        Case{"loading", [](Worker& w) { w.ready = false; }, true},
                        Case{"draining", [](Worker& w) { w.draining = true; }, true},
                        Case{"full", [](Worker& w) { w.sequences.Add(16); }, false},
                        Case{"no memory", [](Worker& w) { w.blocks.Add(990); }, false}}) {
    SCOPED_TRACE(c.name);
    Cluster cluster(2, 2);
    c.change(cluster.workers[2]);
    if (c.also_prefill) c.change(cluster.workers[0]);
    for (const Candidate& candidate : cluster.Choose(512).candidates) {
      EXPECT_EQ(candidate.decode, WorkerId{3});
      if (c.also_prefill) {
        EXPECT_NE(candidate.prefill, WorkerId{0});
      }
    }
    c.change(cluster.workers[3]);
    EXPECT_TRUE(cluster.Choose(512).candidates.empty());
    EXPECT_FALSE(HasRoom(cluster.Of(512), {}, cluster.prefill, cluster.decode, kStart));
  }
  Cluster cluster(1, 1);
  cluster.excluded = {WorkerId{0}};
  EXPECT_TRUE(cluster.Choose(512).candidates.at(0).local());
  cluster.workers[1].BeginPrefill(5000, kStart);
  EXPECT_TRUE(cluster.Choose(512).candidates.empty()) << "no one prefills in time";
}

// Against all pairs, the shortlists lose little and seldom, however unlike the workers are: 3 % in
// one of a hundred cases, never a quarter. And HasRoom says the same as either.
TEST(PolicyTest, AgreesWithAllPairs) {
  int worse = 0;
  for (std::uint32_t seed = 0; seed < 3000; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937 random(seed);
    const auto draw = [&](std::uint32_t n) { return static_cast<std::uint32_t>(random() % n); };
    const std::size_t prefills = draw(20);
    Cluster cluster(prefills, 1 + draw(20));
    const std::uint32_t prompt = 1 + draw(4000);
    for (Worker& w : cluster.workers) {
      cluster.usable[IndexOf(w.id)] = draw(3) == 0 ? draw(prompt / 32 + 1) : 0;
      for (std::uint32_t n = draw(4); n > 0; --n) w.BeginPrefill(draw(1500), kStart);
      w.sequences.Add(draw(18));
      w.blocks.Add(draw(1100));
      w.bytes_in = draw(100'000'000);
      w.bytes_out = draw(100'000'000);
      w.ready = draw(10) != 0;
    }
    PolicyOptions all;
    all.shortlist = all.candidates_kept = 1000;
    const std::unique_ptr<Policy> slow = Policy::Make(all);
    const Work work = cluster.Of(prompt);
    const Decision want = slow->Choose(work, cluster.prefill, cluster.decode, kStart);
    const Decision got = cluster.Choose(prompt);
    ASSERT_EQ(got.candidates.empty(), want.candidates.empty());
    EXPECT_EQ(HasRoom(work, all, cluster.prefill, cluster.decode, kStart),
              !want.candidates.empty());
    if (want.candidates.empty()) continue;
    const double best = want.candidates[0].terms.total();
    EXPECT_LE(got.candidates[0].terms.total(), best * 1.25);
    worse += got.candidates[0].terms.total() > best * 1.03 + 0.001 ? 1 : 0;
  }
  EXPECT_LE(worse, 30) << "of 3,000";
}

}  // namespace
}  // namespace penstock::coordinator
