// SPDX-License-Identifier: Apache-2.0
// The parts of `penstock bench` that need no cluster.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cli/bench_lengths.h"
#include "cli/bench_stats.h"
#include "cli/bench_trace.h"
#include "cli/bench_workload.h"

namespace penstock::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

LengthDistribution Lengths(std::string_view text) {
  return LengthDistribution::Parse("--prompt", text).value();
}

TEST(BenchLengthsTest, SaysWhatIsWrong) {
  for (const char* text :
       {"", "0", "-1", "x", "1.5", "16777217", "fixed:", "fixed:1:2", "uniform:1", "uniform:5:4",
        "uniform:0:4", "uniform:a:4", "lognormal:5", "gauss:1:2", "lognormal:5:-1",
        "lognormal:5:nan", "lognormal:5:9", "lognormal:0:1", "512 "}) {
    SCOPED_TRACE(text);
    const auto parsed = LengthDistribution::Parse("--prompt", text);
    if (std::string_view(text) == "512 ") {
      EXPECT_TRUE(parsed.ok());  // Abseil's numbers may have space around them.
      continue;
    }
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(parsed.status().message().find("--prompt"), absl::string_view::npos);
  }
}

TEST(BenchLengthsTest, DrawsWhatItSays) {
  constexpr int kDraws = 20000;
  std::mt19937_64 random(7);
  EXPECT_EQ(Lengths("512").Draw(random), 512);
  EXPECT_EQ(Lengths("fixed:3").Draw(random), 3);
  const LengthDistribution uniform = Lengths("uniform:10:13");
  std::vector<int> counts(4);
  for (int i = 0; i < kDraws; ++i) ++counts.at(static_cast<std::size_t>(uniform.Draw(random) - 10));
  for (const int count : counts) EXPECT_NEAR(count, kDraws / 4, 4 * std::sqrt(kDraws / 4.0));
  const LengthDistribution lognormal = Lengths("lognormal:500:0.5");
  double sum = 0, squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = std::log(lognormal.Draw(random) / 500.0);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0, 0.02);
  EXPECT_NEAR(std::sqrt(squares / kDraws), 0.5, 0.02);
  // Far out there is still a length.
  const LengthDistribution wild = Lengths("lognormal:16777216:8");
  for (int i = 0; i < 1000; ++i) {
    const std::int32_t tokens = wild.Draw(random);
    EXPECT_TRUE(tokens >= 1 && tokens <= kBenchTokensMax) << tokens;
  }
}

TEST(BenchWorkloadTest, PoissonArrivalsComeFromTheSeed) {
  SyntheticWorkload workload = {
      .seed = 3, .requests = 20000, .rate = 50, .prompt = Lengths("8"), .output = Lengths("4")};
  const std::vector<BenchRequest> a = MakeSynthetic(workload), b = MakeSynthetic(workload);
  ASSERT_EQ(a.size(), 20000u);
  EXPECT_EQ(a.front().arrival, Duration());
  double sum = 0, squares = 0;
  for (std::size_t i = 1; i < a.size(); ++i) {
    EXPECT_EQ(a[i].arrival, b[i].arrival);
    const double gap = ToSeconds(a[i].arrival - a[i - 1].arrival);
    EXPECT_GE(gap, 0);
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / 19999;
  EXPECT_NEAR(mean, 0.02, 1e-9);
  // An exponential distribution's deviation is its mean.
  EXPECT_NEAR(std::sqrt(squares / 19999 - mean * mean), 0.02, 0.001);
  workload.seed = 4;
  EXPECT_NE(MakeSynthetic(workload)[1].arrival, a[1].arrival);
  EXPECT_NE(MakePrompt(MakeSynthetic(workload)[0], 1000), MakePrompt(a[0], 1000));
}

TEST(BenchWorkloadTest, PrefixesShareAndTheRestDoesNot) {
  const SyntheticWorkload workload = {.seed = 1,
                                      .requests = 64,
                                      .prompt = Lengths("uniform:20:40"),
                                      .output = Lengths("2"),
                                      .prefix_tokens = 32,
                                      .prefixes = 2};
  std::vector<std::vector<TokenId>> heads, tails;
  for (const BenchRequest& request : MakeSynthetic(workload)) {
    const std::vector<TokenId> tokens = MakePrompt(request, 256);
    ASSERT_EQ(tokens.size(), static_cast<std::size_t>(request.prompt_tokens));
    for (const TokenId token : tokens) EXPECT_TRUE(token >= 0 && token < 256);
    const std::vector<TokenId> head(tokens.begin(), tokens.begin() + 32);
    if (std::ranges::find(heads, head) == heads.end()) heads.push_back(head);
    const std::vector<TokenId> tail(tokens.begin() + 32, tokens.begin() + 52);
    EXPECT_EQ(std::ranges::find(tails, tail), tails.end());
    tails.push_back(tail);
  }
  EXPECT_EQ(heads.size(), 2u);
}

TEST(BenchWorkloadTest, LongerPiecesBeginWithShorterOnes) {
  const BenchRequest whole = {.prompt = {{1, 8}, {2, 8}}, .prompt_tokens = 16};
  std::vector<BenchRequest> cut = {whole, whole, whole};
  cut[1].output_tokens = 9;
  EXPECT_EQ(CutLengths(11, 0, cut), 3);
  const std::vector<TokenId> tokens = MakePrompt(whole, 5000), shorter = MakePrompt(cut[0], 5000);
  ASSERT_EQ(shorter.size(), 11u);
  EXPECT_TRUE(std::equal(shorter.begin(), shorter.end(), tokens.begin()));
  EXPECT_EQ(CutLengths(8, 4, cut), 3);
  EXPECT_EQ(cut[0].prompt.size(), 1u);
  EXPECT_EQ(cut[1].output_tokens, 4);
  EXPECT_EQ(CutLengths(0, 0, cut), 0);
}

TEST(BenchTraceTest, MooncakeSharesWhatItsHashIdsShare) {
  const auto requests = ParseTrace(
      "t",
      R"({"timestamp": 3000, "input_length": 1030, "output_length": 5, "hash_ids": [7, 8, 9]}
{"timestamp": 1500, "input_length": 600, "output_length": 0, "hash_ids": [7, 8]}

{"timestamp": 9000, "input_length": 1, "output_length": 3, "hash_ids": [0], "other": null}
)",
      0);
  ASSERT_TRUE(requests.ok()) << requests.status();
  ASSERT_EQ(requests->size(), 3u);
  const BenchRequest &first = (*requests)[0], &second = (*requests)[1];
  EXPECT_EQ(first.arrival, Duration());
  EXPECT_EQ(second.arrival, milliseconds(1500));
  EXPECT_EQ((*requests)[2].arrival, milliseconds(7500));
  EXPECT_EQ(first.output_tokens, 1);
  const std::vector<TokenId> a = MakePrompt(first, 900), b = MakePrompt(second, 900);
  ASSERT_EQ(a.size(), 600u);
  ASSERT_EQ(b.size(), 1030u);
  EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin()));
  EXPECT_EQ(ParseTrace("t",
                       "{\"timestamp\": 1, \"input_length\": 2, \"output_length\": 3, "
                       "\"hash_ids\": [4]}\nnonsense",
                       1)
                .value()
                .size(),
            1u);
}

TEST(BenchTraceTest, AzureHasDatesAndSharesNothing) {
  const auto requests = ParseTrace("t",
                                   "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
                                   "2023-11-16 23:59:59.5000000,374,44\r\n"
                                   "2023-11-17 00:00:01,396,0\r\n"
                                   "2024-03-01 00:00:00.5,396,109\n",
                                   0);
  ASSERT_TRUE(requests.ok()) << requests.status();
  ASSERT_EQ(requests->size(), 3u);
  EXPECT_EQ((*requests)[1].arrival, milliseconds(1500));
  EXPECT_EQ((*requests)[1].output_tokens, 1);
  EXPECT_EQ((*requests)[2].arrival, std::chrono::hours(24 * 105) + seconds(1));
  EXPECT_NE(MakePrompt((*requests)[1], 900), MakePrompt((*requests)[2], 900));
}

TEST(BenchTraceTest, HostileLinesAreNamed) {
  struct Case {
    std::string text;
    const char* want;
  };
  const std::string good =
      "{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [1]}\n";
  const std::string azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  for (const Case& c : std::vector<Case>{
           {"", "t:1: no request"},
           {azure, "t:1: no request"},
           {"hello\n", "t:1: neither"},
           {good + good + "[1]\n", "t:3: neither"},
           {good + "{\n", "t:2: "},
           {good + "{\"timestamp\": 0}\n", "t:2: "},
           {good + "{\"timestamp\": \"0\"}\n", "t:2: timestamp"},
           {"{\"timestamp\": -1}\n", "t:1: timestamp"},
           {"{\"timestamp\": 1e300}\n", "t:1: timestamp"},
           {"{\"timestamp\": 0, \"input_length\": 0}\n", "t:1: input_length"},
           {"{\"timestamp\": 0, \"input_length\": 99999999}\n", "t:1: input_length"},
           {"{\"timestamp\": 0, \"input_length\": 5, \"output_length\": -5}\n", "t:1: "},
           {"{\"timestamp\": 0, \"input_length\": 513, \"output_length\": 5, \"hash_ids\": [1]}\n",
            "t:1: hash_ids must be a list of 2"},
           {"{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [-1]}\n",
            "t:1: hash_ids"},
           {"{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [1e30]}\n",
            "t:1: hash_ids"},
           {"{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": {}}\n",
            "t:1: hash_ids"},
           {std::string(100'000, '{'), "t:1: "},
           {azure + "2023-11-16 18:17:03.9799600,5\n", "t:2: a line has 3 fields"},
           {azure + "2023-11-16 18:17:03.9799600,5,x\n", "t:2: GeneratedTokens"},
           {azure + "2023-11-16 18:17:03.9799600,0,1\n", "t:2: ContextTokens"},
           {azure + "2023-02-30 18:17:03.9799600,5,1\n", "t:2: TIMESTAMP"},
           {azure + "2023-11-16T18:17:03,5,1\n", "t:2: TIMESTAMP"},
           {azure + "2023-11-16 18:17:03.1234567891,5,1\n", "t:2: TIMESTAMP"},
           {azure + "9999-11-16 18:17:03,5,1\n", "t:2: TIMESTAMP"},
           {azure + ",,\n", "t:2: TIMESTAMP"}}) {
    SCOPED_TRACE(c.text.substr(0, 200));
    const auto requests = ParseTrace("t", c.text, 0);
    EXPECT_EQ(requests.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(requests.status().message().find(c.want), 0u) << requests.status();
  }
}

TEST(BenchStatsTest, PercentilesAreNearestRanks) {
  std::vector<double> values;
  for (int i = 200; i >= 1; --i) values.push_back(i);
  const Percentiles p = MakePercentiles(values);
  EXPECT_EQ(p.p50, 100);
  EXPECT_EQ(p.p90, 180);
  EXPECT_EQ(p.p99, 198);
  EXPECT_EQ(p.max, 200);
  EXPECT_DOUBLE_EQ(p.mean, 100.5);
  EXPECT_EQ(MakePercentiles({}).count, 0u);
  EXPECT_EQ(MakePercentiles({5}).p50, 5);
  EXPECT_EQ(MakePercentiles({5}).p99, 5);
  EXPECT_EQ(MakePercentiles({1, 2}).p50, 1);
}

TEST(BenchStatsTest, SummaryOfThreeRequests) {
  const BenchRecord quick = {.arrival = seconds(1),
                             .sent = seconds(1),
                             .first = milliseconds(1100),
                             .last = milliseconds(1300),
                             .end = milliseconds(1300),
                             .gaps = {0.1f, 0.1f},
                             .code = "ok",
                             .prompt_tokens = 100,
                             .cached_tokens = 25,
                             .output_tokens = 3,
                             .attempts = 1};
  BenchRecord slow = quick;
  slow.arrival = seconds(2);
  slow.sent = milliseconds(2010);
  slow.first = seconds(4);
  slow.last = slow.end = seconds(5);
  slow.gaps = {0.5f, 0.5f};
  slow.attempts = 3;
  const BenchRecord failed = {.arrival = seconds(3),
                              .sent = seconds(3),
                              .end = milliseconds(3001),
                              .code = "resource_exhausted",
                              .message = "full"};
  const BenchSummary s =
      Summarize({quick, slow, failed}, {.ttft_ms = 500, .tpot_ms = 100}, /*slices=*/4);
  EXPECT_DOUBLE_EQ(s.seconds, 4);
  EXPECT_EQ(s.requests, 3u);
  EXPECT_EQ(s.complete(), 2u);
  EXPECT_EQ(s.good, 1u);
  EXPECT_DOUBLE_EQ(s.goodput(), 0.25);
  EXPECT_EQ(s.by_code.at("resource_exhausted"), 1u);
  EXPECT_EQ(s.first_error, "full");
  EXPECT_DOUBLE_EQ(s.hit_rate(), 0.25);
  EXPECT_EQ(s.retries, 2);
  EXPECT_DOUBLE_EQ(s.ttft_ms.p50, 100);
  EXPECT_DOUBLE_EQ(s.ttft_ms.p99, 2000);
  EXPECT_DOUBLE_EQ(s.tpot_ms.max, 500);
  EXPECT_EQ(s.itl_ms.count, 4u);
  EXPECT_NEAR(s.itl_ms.p50, 100, 1e-3);
  EXPECT_DOUBLE_EQ(s.late_ms.max, 10);
  ASSERT_EQ(s.slices.size(), 4u);
  double tokens = 0, live = 0;
  for (const BenchSlice& slice : s.slices) {
    tokens += slice.output_tokens;
    live += slice.live;
  }
  EXPECT_EQ(tokens, 6);
  EXPECT_NEAR(live, 0.3 + 3 + 0.001, 1e-9);  // Seconds, the slices being one long.
  EXPECT_EQ(s.slices[0].finished, 1);
  EXPECT_EQ(s.slices[3].finished, 1);
  EXPECT_EQ(Summarize({}, {}).requests, 0u);
}

TEST(BenchStatsTest, SteadyGoodputLeavesOutBeginAndEnd) {
  // Twenty end one after the other, at 1 s, 2 s, ... 20 s: two have ended at 2 s, eighteen at 18 s.
  std::vector<BenchRecord> records;
  for (int i = 20; i >= 1; --i) {
    const bool slow = i == 10 || i == 12;
    records.push_back({.arrival = seconds(i - 1),
                       .sent = seconds(i - 1),
                       .first = seconds(i - 1) + milliseconds(slow ? 900 : 100),
                       .last = seconds(i),
                       .end = seconds(i),
                       .code = "ok",
                       .output_tokens = 1});
  }
  EXPECT_DOUBLE_EQ(Summarize(records, {}).steady_goodput(), 16.0 / 16);
  EXPECT_DOUBLE_EQ(Summarize(records, {.ttft_ms = 500}).steady_goodput(), 14.0 / 16);
  // What fails is neither counted nor moves the moments.
  records.push_back(
      {.arrival = seconds(1), .sent = seconds(1), .end = seconds(2), .code = "aborted"});
  EXPECT_DOUBLE_EQ(Summarize(records, {.ttft_ms = 500}).steady_goodput(), 14.0 / 16);
  // A slow beginning and a long end: 0.95 a second over all, but 1.
  records[0].end = records[0].last = seconds(21);
  EXPECT_DOUBLE_EQ(Summarize(records, {}).goodput(), 20.0 / 21);
  EXPECT_DOUBLE_EQ(Summarize(records, {}).steady_goodput(), 1);

  records.erase(records.begin());  // Nineteen complete: too few.
  EXPECT_DOUBLE_EQ(Summarize(records, {}).steady_goodput(), Summarize(records, {}).goodput());
  EXPECT_DOUBLE_EQ(Summarize(records, {}).goodput(), 1);  // Nineteen in 19 s.
  // All at one moment: there is no time between.
  for (BenchRecord& record : records) record.end = seconds(30);
  records.resize(18);
  records.insert(records.end(), 5, records[0]);
  EXPECT_DOUBLE_EQ(Summarize(records, {}).steady_goodput(), Summarize(records, {}).goodput());
}

}  // namespace
}  // namespace penstock::cli
