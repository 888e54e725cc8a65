// SPDX-License-Identifier: Apache-2.0
#include "sim/hour_sim.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "sim/trace.h"

namespace penstock::sim {
namespace {

HourOptions Small(const char* policy) {
  HourOptions options;
  options.policy = policy;
  options.prefills = 10;
  options.decodes = 10;
  return options;
}

TEST(HourSimTest, EveryRequestIsAnswered) {
  const std::vector<TraceRequest> trace = MakeTrace(1500, 1);
  for (const char* const policy : {"cost", "least-loaded", "round-robin"}) {
    SCOPED_TRACE(policy);
    const absl::StatusOr<HourResult> result = RunHour(trace, Small(policy));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->requests, 1500u);
    EXPECT_EQ(result->answered, 1500u);
    EXPECT_EQ(result->ttft_seconds.size(), 1500u);
    EXPECT_GT(result->ttft_seconds.front(), 0);
    EXPECT_GE(result->decisions, 1500u);
    std::uint64_t answers = 0;
    for (const TraceRequest& request : trace) answers += request.output_tokens;
    std::uint64_t answered = 0;
    for (const std::uint64_t tokens : result->decode_tokens) answered += tokens;
    EXPECT_EQ(answered, answers);
  }
}

TEST(HourSimTest, CostFindsWhatIsCached) {
  const std::vector<TraceRequest> trace = MakeTrace(1500, 2);
  const absl::StatusOr<HourResult> cost = RunHour(trace, Small("cost"));
  const absl::StatusOr<HourResult> blind = RunHour(trace, Small("round-robin"));
  ASSERT_TRUE(cost.ok() && blind.ok());
  EXPECT_GT(cost->reused_tokens, 2 * blind->reused_tokens);
  EXPECT_LT(cost->ttft_seconds[750], blind->ttft_seconds[750]);
}

TEST(HourSimTest, TheSameTraceGivesTheSameRun) {
  const std::vector<TraceRequest> trace = MakeTrace(500, 3);
  const absl::StatusOr<HourResult> one = RunHour(trace, Small("cost"));
  const absl::StatusOr<HourResult> two = RunHour(trace, Small("cost"));
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_EQ(one->ttft_seconds, two->ttft_seconds);
  EXPECT_EQ(one->events, two->events);
}

TEST(HourSimTest, WrongOptions) {
  EXPECT_TRUE(absl::IsInvalidArgument(RunHour({}, Small("fastest")).status()));
  HourOptions none = Small("cost");
  none.decodes = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(RunHour({}, none).status()));
}

TEST(TraceTest, ReadsMooncakesLines) {
  const std::string path = testing::TempDir() + "/trace.jsonl";
  const auto read = [&](const std::string& text) {
    std::ofstream(path) << text;
    return ReadTrace(path);
  };
  const auto trace = read(
      "{\"timestamp\": 27482, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [0, 7]}\n"
      "{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 0, \"hash_ids\": [3]}\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 2u);
  EXPECT_EQ((*trace)[0].at, Duration());
  EXPECT_EQ((*trace)[0].output_tokens, 1u);
  EXPECT_EQ((*trace)[1].at, std::chrono::milliseconds(27482));
  EXPECT_EQ((*trace)[1].blocks, (std::vector<std::uint64_t>{0, 7}));
  struct Case {
    const char* line;
    const char* says;
  };
  for (const Case& c : {
           Case{"nonsense", "line 1: not a JSON object"},
           Case{"{\"timestamp\": -1}", "timestamp"},
           Case{"{\"timestamp\": 0, \"input_length\": 1.5}", "input_length"},
           Case{"{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1}", "hash_ids"},
           Case{"{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1, "
                "\"hash_ids\": [\"a\"]}",
                "hash_ids"},
       }) {
    SCOPED_TRACE(c.line);
    const absl::Status status = read(c.line).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_NE(std::string(status.message()).find(c.says), std::string::npos) << status;
  }
  EXPECT_TRUE(absl::IsNotFound(ReadTrace(path + ".none").status()));
}

}  // namespace
}  // namespace penstock::sim
