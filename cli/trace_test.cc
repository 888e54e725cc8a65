// SPDX-License-Identifier: Apache-2.0
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "cli/trace_data.h"
#include "cli/trace_summary.h"
#include "cli/trace_testing.h"
#include "cli/trace_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace penstock::cli {
namespace {

TEST(ClockOffsetTest, TakesTheShortestRoundTrip) {
  const ClockSample samples[] = {
      {.sent_ns = 0, .received_ns = 1000, .theirs_ns = 90},
      {.sent_ns = 2000, .received_ns = 2101, .theirs_ns = 7050},
      {.sent_ns = 3000, .received_ns = 4000, .theirs_ns = 9999},
  };
  const ClockOffset offset = EstimateOffset(samples);
  EXPECT_EQ(offset.offset_ns, 5000);
  EXPECT_EQ(offset.error_ns, 51);
}

// Whatever way a round trip is split into there and back, the truth is within the bound.
TEST(ClockOffsetTest, TheTruthIsWithinTheError) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937_64 random(seed);
    const auto draw = [&](std::int64_t most) {
      return std::uniform_int_distribution<std::int64_t>(0, most)(random);
    };
    const std::int64_t truth = draw(2'000'000'000) - 1'000'000'000;
    std::vector<ClockSample> samples;
    for (int i = 0; i < 8; ++i) {
      const std::int64_t sent = draw(1'000'000'000'000);
      const std::int64_t there = draw(1'000'000);
      const std::int64_t back = draw(1'000'000);
      samples.push_back(
          {.sent_ns = sent, .received_ns = sent + there + back, .theirs_ns = sent + there + truth});
    }
    const ClockOffset offset = EstimateOffset(samples);
    EXPECT_LE(std::abs(offset.offset_ns - truth), offset.error_ns);
  }
}

TEST(PercentilesTest, AreValuesThatOccurred) {
  struct Case {
    const char* name;
    std::vector<std::int64_t> values;
    std::int64_t p50, p90, p99;
  };
  std::vector<std::int64_t> hundred;
  for (int i = 100; i >= 1; --i) hundred.push_back(i);
  for (const Case& c :
       {Case{"none", {}, 0, 0, 0}, Case{"one", {7}, 7, 7, 7}, Case{"two", {9, 1}, 1, 9, 9},
        Case{"ten", {10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 5, 9, 10},
        Case{"a hundred", hundred, 50, 90, 99}}) {
    SCOPED_TRACE(c.name);
    const NanoPercentiles p = PercentilesOf(c.values);
    EXPECT_EQ(p.count, c.values.size());
    EXPECT_EQ(p.p50_ns, c.p50);
    EXPECT_EQ(p.p90_ns, c.p90);
    EXPECT_EQ(p.p99_ns, c.p99);
  }
}

TEST(TraceDataTest, AnAnswerThatWentOnAloneIsPartOfItsRequest) {
  ClusterTrace trace;
  trace.processes.resize(1);
  const auto add = [&](SpanName name, const char* id, std::int64_t begin) {
    trace.spans.push_back({.name = name, .request_id = id, .begin_ns = begin, .end_ns = begin});
  };
  add(SpanName::kRequest, "a", 1);
  add(SpanName::kRoute, "a.0", 2);
  add(SpanName::kRequest, "b.1", 3);  // A client may call it so.
  add(SpanName::kRequest, "b", 4);
  add(SpanName::kQueue, "c.2", 5);  // The gateway's spans are not there.
  EXPECT_EQ(RequestsOf(trace), (std::vector<std::string>{"a", "b.1", "b", "c.2"}));
  EXPECT_EQ(OnlyRequest(trace, "a").spans.size(), 2u);
  EXPECT_EQ(OnlyRequest(trace, "b").spans.size(), 1u);
  EXPECT_EQ(Parents(trace), (std::vector<std::int32_t>{-1, 0, -1, -1, -1}));
}

TEST(TraceDataTest, ParentsAreOfTheSameAttemptAndAroundTheirParts) {
  const ClusterTrace trace = ExampleTrace();
  const std::vector<std::int32_t> parents = Parents(trace);
  for (std::size_t i = 0; i < trace.spans.size(); ++i) {
    const TraceSpan& span = trace.spans[i];
    SCOPED_TRACE(std::string(ToString(span.name)));
    if (span.name == SpanName::kRequest) {
      EXPECT_EQ(parents[i], -1);
      continue;
    }
    ASSERT_GE(parents[i], 0);
    const TraceSpan& parent = trace.spans[static_cast<std::size_t>(parents[i])];
    EXPECT_EQ(parent.name, ParentOf(span.name));
    EXPECT_GE(trace.spans[i].begin_ns, parent.begin_ns - 10000);
  }
}

TEST(TraceDataTest, APartWhoseWholeWasNotRecordedGoesUpOne) {
  ClusterTrace trace = ExampleTrace();
  std::erase_if(trace.spans, [](const TraceSpan& s) { return s.name == SpanName::kFirstToken; });
  const std::vector<std::int32_t> parents = Parents(trace);
  for (std::size_t i = 0; i < trace.spans.size(); ++i) {
    if (trace.spans[i].name != SpanName::kWire) continue;
    EXPECT_EQ(trace.spans[static_cast<std::size_t>(parents[i])].name, SpanName::kRequest);
  }
}

TEST(TraceDataTest, FlowsGoFromEachSendToItsRead) {
  const ClusterTrace trace = ExampleTrace();
  const std::vector<Flow> flows = Flows(trace);
  ASSERT_EQ(flows.size(), 4u);
  for (const Flow& flow : flows) {
    const TraceSpan& send = trace.spans[flow.send];
    const TraceSpan& wire = trace.spans[flow.wire];
    EXPECT_EQ(send.name, SpanName::kSend);
    EXPECT_EQ(wire.name, SpanName::kWire);
    EXPECT_EQ(send.layer, wire.layer);
    EXPECT_LE(send.end_ns, wire.begin_ns);
    EXPECT_LE(wire.begin_ns - send.end_ns, 10000);
  }
}

TEST(TraceSummaryTest, CountsWhatIsHiddenBehindCompute) {
  const TraceSummary summary = Summarize(ExampleTrace());
  EXPECT_EQ(summary.requests, 1u);
  EXPECT_EQ(summary.clock_error_ns, 700);
  EXPECT_EQ(summary.phases.size(),
            kSpanNames - 12);  // Nothing is of the store, between GPUs, or waits for a link.
  ASSERT_EQ(summary.pairs.size(), 1u);
  const PairSummary& pair = summary.pairs[0];
  EXPECT_EQ(pair.prefill, "prefill-0");
  EXPECT_EQ(pair.decode, "decode-0");
  EXPECT_EQ(pair.transport, "shm");
  EXPECT_EQ(pair.handoffs, 1u);
  EXPECT_EQ(pair.bytes, 3500u);
  EXPECT_EQ(pair.wait.count, 4u);
  EXPECT_EQ(pair.wait.p50_ns, 0);
  EXPECT_EQ(pair.wait.p99_ns, 10000);
  EXPECT_EQ(pair.wire.p50_ns, 15000);
  EXPECT_EQ(pair.wire.p99_ns, 20000);
  EXPECT_EQ(pair.whole.p50_ns, 170000);
  EXPECT_EQ(pair.after.p50_ns, 20000);
  EXPECT_EQ(pair.underway_ns, 80000);
  EXPECT_EQ(pair.hidden_ns, 60000);
  EXPECT_DOUBLE_EQ(pair.hidden_share(), 0.75);
}

TEST(TraceSummaryTest, OverlappingReadsCountOnce) {
  ClusterTrace trace = ExampleTrace();
  const std::vector<TraceSpan> spans = trace.spans;
  for (const TraceSpan& span : spans) {
    if (span.name == SpanName::kWire) trace.spans.push_back(span);
  }
  EXPECT_EQ(Summarize(trace).pairs[0].underway_ns, 80000);
}

TEST(TraceSummaryTest, WithoutThePrefillWorkerNothingIsSaidOfHiding) {
  ClusterTrace trace = ExampleTrace();
  std::erase_if(trace.spans, [](const TraceSpan& s) { return s.name == SpanName::kPrefill; });
  const PairSummary pair = Summarize(trace).pairs.at(0);
  EXPECT_EQ(pair.handoffs, 1u);
  EXPECT_EQ(pair.underway_ns, 0);
  EXPECT_EQ(pair.after.count, 0u);
  EXPECT_EQ(SummaryTables(trace, Summarize(trace)).find("hidden"), std::string::npos);
}

TEST(TraceTextTest, FormatsTimes) {
  for (const auto& [ns, want] :
       std::vector<std::pair<std::int64_t, const char*>>{{0, "0 ns"},
                                                         {999, "999 ns"},
                                                         {1000, "1 us"},
                                                         {12345, "12.3 us"},
                                                         {4560000, "4.56 ms"},
                                                         {7891000000, "7.891 s"},
                                                         {-2500, "-2.5 us"}}) {
    EXPECT_EQ(FormatNanos(ns), want);
  }
}

TEST(TraceTextTest, OneLineForTheLayersOfAHandoffOrAll) {
  const ClusterTrace trace = ExampleTrace();
  const auto lines = [&](bool all, const char* word) {
    int count = 0;
    for (const absl::string_view line : absl::StrSplit(RequestTable(trace, all), '\n')) {
      count += absl::StrContains(line, word) ? 1 : 0;
    }
    return count;
  };
  EXPECT_EQ(lines(false, " wire "), 1);
  EXPECT_EQ(lines(true, " wire "), 4);
  EXPECT_EQ(lines(false, " prefill "), 2);  // A chunk each.
  const std::string table = RequestTable(trace, false);
  EXPECT_NE(table.find("x4, busy 65 us, from prefill-0, by shm"), std::string::npos) << table;
  EXPECT_NE(table.find("3.5 kB"), std::string::npos) << table;
  // 3500 bytes in 65 us.
  EXPECT_NE(table.find("0.05 GB/s"), std::string::npos) << table;
  EXPECT_NE(table.find("\n       1 us       10 us    tokenize "), std::string::npos) << table;
}

TEST(TraceTextTest, SummaryNamesProcessesPairsAndShares) {
  const ClusterTrace trace = ExampleTrace();
  const std::string text = SummaryTables(trace, Summarize(trace));
  for (const char* part : {"decode-0", "+5 us +- 700 ns", "same clock",
                           "prefill-0 -> decode-0 by shm: 1 handoff, 3.5 kB",
                           "hidden behind prefill compute: 75.0 % of 80 us",
                           "Times between hosts may be wrong by 700 ns."}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
}

// Spans of the store, of a request and of none.
ClusterTrace StoreTrace() {
  ClusterTrace trace = ExampleTrace();
  const auto add = [&](SpanName name, const char* request, std::int64_t us, const char* transport,
                       const char* text, std::uint64_t bytes) {
    trace.spans.push_back({.name = name,
                           .process = 1,
                           .number = 1000 + trace.spans.size(),
                           .request_id = request,
                           .begin_ns = 50000,
                           .end_ns = 50000 + us * 1000,
                           .bytes = bytes,
                           .transport = transport,
                           .text = text});
  };
  add(SpanName::kFetch, "r-1", 10, "shm", "host raw", 1000);
  add(SpanName::kFetch, "r-1", 30, "shm", "host raw", 5000);
  add(SpanName::kFetch, "r-1", 20, "tcp", "host raw", 7);
  add(SpanName::kFetch, "r-1", 20, "shm", "disk raw", 9);
  add(SpanName::kFetch, "r-1", 20, "shm", "disk planes+zstd", 11);
  add(SpanName::kUnpack, "r-1", 4, "shm", "disk planes+zstd", 12);
  add(SpanName::kEncode, "", 2, "shm", "planes", 13);
  add(SpanName::kPromote, "", 3, "redis", "remote raw", 14);
  add(SpanName::kDiskRead, "", 5, "", "disk -", 15);
  SortSpans(trace);
  return trace;
}

TEST(TraceSummaryTest, TellsTiersCodecsAndLinksApart) {
  const TraceSummary summary = Summarize(StoreTrace());
  std::vector<std::string> ways;
  for (const StoreSummary& way : summary.stores) {
    ways.push_back(absl::StrCat(ToAbsl(ToString(way.name)), "/", way.tier, "/", way.codec, "/",
                                way.transport, " x", way.time.count, " ", way.bytes));
  }
  EXPECT_THAT(ways,
              testing::ElementsAre("fetch/disk/planes+zstd/shm x1 11", "fetch/disk/raw/shm x1 9",
                                   "fetch/host/raw/shm x2 6000", "fetch/host/raw/tcp x1 7",
                                   "unpack/disk/planes+zstd/shm x1 12", "encode//planes/shm x1 13",
                                   "promote/remote/raw/redis x1 14", "disk_read/disk/-/ x1 15"));
  EXPECT_EQ(summary.stores[2].time.p50_ns, 10000);
  EXPECT_EQ(summary.stores[2].time.p99_ns, 30000);
  EXPECT_EQ(summary.stores[2].busy_ns, 40000);
  const std::string text = SummaryTables(StoreTrace(), summary);
  EXPECT_THAT(text, testing::ContainsRegex(
                        "\nfetch +host +raw +shm +2 +10 us +30 us +30 us +6.0 kB +0.15 GB/s\n"));
  EXPECT_THAT(text, testing::ContainsRegex("\nencode +- +planes +shm +1 "));
  EXPECT_THAT(text, testing::HasSubstr("worker: fetch"));  // All together, too.
}

TEST(TraceSummaryTest, SpansOfNoRequestAreNoRequest) {
  const ClusterTrace trace = StoreTrace();
  EXPECT_EQ(Summarize(trace).requests, 1u);
  EXPECT_EQ(RequestsOf(trace), std::vector<std::string>{"r-1"});
  EXPECT_EQ(OnlyRequest(trace, "r-1").spans.size(), trace.spans.size() - 3);
  for (std::size_t i = 0; i < trace.spans.size(); ++i) {
    if (!trace.spans[i].request_id.empty()) continue;
    EXPECT_EQ(Parents(trace)[i], -1);
  }
}

}  // namespace
}  // namespace penstock::cli
