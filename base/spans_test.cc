// SPDX-License-Identifier: Apache-2.0
#include "base/spans.h"

#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace penstock {
namespace {

constexpr std::size_t kAll = ~std::size_t{0};

MonoTime At(std::int64_t ns) { return MonoTime(Duration(ns)); }

std::vector<std::uint64_t> Numbers(const SpanRing& ring, std::uint64_t cursor, std::size_t most) {
  std::vector<std::uint64_t> numbers;
  ring.Read(cursor, most, [&](std::uint64_t number, const Span&) { numbers.push_back(number); });
  return numbers;
}

TEST(SpanRingTest, KeepsAllOfASpan) {
  SpanRing ring(4);
  ring.Record({.name = SpanName::kWire,
               .request_id = "r-1",
               .attempt = 2,
               .begin = At(10),
               .end = At(30),
               .bytes = std::uint64_t{5} << 40,
               .tokens = 7,
               .blocks = 8,
               .layer = 29,
               .group = 1,
               .peer = "prefill-0",
               .transport = "shm",
               .text = "x=1"});
  int visited = 0;
  EXPECT_EQ(ring.Read(0, kAll,
                      [&](std::uint64_t number, const Span& span) {
                        ++visited;
                        EXPECT_EQ(number, 0u);
                        EXPECT_EQ(span.name, SpanName::kWire);
                        EXPECT_EQ(span.request_id, "r-1");
                        EXPECT_EQ(span.attempt, 2u);
                        EXPECT_EQ(span.begin, At(10));
                        EXPECT_EQ(span.end, At(30));
                        EXPECT_EQ(span.bytes, std::uint64_t{5} << 40);
                        EXPECT_EQ(span.tokens, 7u);
                        EXPECT_EQ(span.blocks, 8u);
                        EXPECT_EQ(span.layer, 29);
                        EXPECT_EQ(span.group, 1);
                        EXPECT_EQ(span.peer, "prefill-0");
                        EXPECT_EQ(span.transport, "shm");
                        EXPECT_EQ(span.text, "x=1");
                      }),
            1u);
  EXPECT_EQ(visited, 1);
}

TEST(SpanRingTest, CutsTextsThatAreTooLong) {
  SpanRing ring(1);
  const std::string text(kSpanTextBytes + 1, 'a');
  ring.Record({.request_id = text, .peer = text, .transport = "123456789", .text = text});
  ring.Read(0, kAll, [&](std::uint64_t, const Span& span) {
    EXPECT_EQ(span.request_id, text.substr(1));
    EXPECT_EQ(span.peer, text.substr(1));
    EXPECT_EQ(span.transport, "12345678");
    EXPECT_EQ(span.text, text.substr(1));
  });
}

TEST(SpanRingTest, ReadsFromACursorAndForgetsTheOldest) {
  struct Case {
    const char* name;
    int recorded;
    std::uint64_t cursor;
    std::size_t most;
    std::vector<std::uint64_t> want;
    std::uint64_t next;
  };
  for (const Case& c : {
           Case{"empty", 0, 0, kAll, {}, 0},
           Case{"all", 3, 0, kAll, {0, 1, 2}, 3},
           Case{"some", 3, 0, 2, {0, 1}, 2},
           Case{"none wanted", 3, 0, 0, {}, 0},
           Case{"from the middle", 3, 2, kAll, {2}, 3},
           Case{"at the end", 3, 3, kAll, {}, 3},
           Case{"beyond the end", 3, 9, kAll, {}, 9},
           Case{"just full", 5, 0, kAll, {0, 1, 2, 3, 4}, 5},
           Case{"one forgotten", 6, 0, kAll, {1, 2, 3, 4, 5}, 6},
           Case{"around twice", 12, 3, kAll, {7, 8, 9, 10, 11}, 12},
           Case{"some of those left", 12, 3, 2, {7, 8}, 9},
       }) {
    SCOPED_TRACE(c.name);
    SpanRing ring(5);
    for (int i = 0; i < c.recorded; ++i) ring.Record({.begin = At(i), .end = At(i)});
    EXPECT_EQ(Numbers(ring, c.cursor, c.most), c.want);
    EXPECT_EQ(ring.Read(c.cursor, c.most,
                        [](std::uint64_t number, const Span& span) {
                          EXPECT_EQ(span.begin, At(static_cast<std::int64_t>(number)));
                        }),
              c.next);
    EXPECT_EQ(ring.recorded(), static_cast<std::uint64_t>(c.recorded));
    EXPECT_EQ(ring.forgotten(), static_cast<std::uint64_t>(std::max(c.recorded - 5, 0)));
  }
}

// Each span says the same in all its fields, so that one torn apart shows.
TEST(SpanRingTest, ThreadsRecordAndReadAtOnce) {
  constexpr std::uint32_t kEach = 20000;
  SpanRing ring(512);
  const auto record = [&ring](std::uint32_t thread) {
    const std::string name = absl::StrCat("thread-", thread);
    for (std::uint32_t i = 0; i < kEach; ++i) {
      ring.Record({.request_id = name,
                   .attempt = thread,
                   .begin = At(i),
                   .end = At(i + 1),
                   .bytes = i,
                   .tokens = i,
                   .peer = name});
    }
  };
  std::uint64_t seen = 0;
  const auto visit = [&](std::uint64_t number, const Span& span) {
    ASSERT_GE(number, seen);
    seen = number + 1;
    ASSERT_EQ(span.request_id, absl::StrCat("thread-", span.attempt));
    ASSERT_EQ(span.peer, span.request_id);
    ASSERT_EQ(span.bytes, span.tokens);
    ASSERT_EQ(span.begin, At(span.tokens));
    ASSERT_EQ(span.end, At(span.tokens + 1));
  };
  {
    std::vector<std::jthread> threads;
    for (std::uint32_t t = 1; t <= 3; ++t) threads.emplace_back(record, t);
    for (std::uint64_t cursor = 0; cursor < 3 * kEach;) cursor = ring.Read(cursor, 100, visit);
  }
  EXPECT_EQ(ring.recorded(), 3 * kEach);
  EXPECT_EQ(seen, 3 * kEach);
}

TEST(SpanRingTest, NullIsOff) {
  Trace(nullptr, {.request_id = "nobody"});
  SpanRing ring(2);
  Trace(&ring, {.request_id = "somebody"});
  EXPECT_EQ(ring.recorded(), 1u);
}

TEST(SpanNameTest, EachHasItsNameAndRole) {
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < kSpanNames; ++i) {
    const auto name = static_cast<SpanName>(i);
    EXPECT_TRUE(names.insert(ToString(name)).second) << ToString(name);
    EXPECT_EQ(ParseSpanName(ToString(name)), name);
    EXPECT_FALSE(RoleOf(name).empty());
  }
  EXPECT_EQ(ToString(SpanName::kWire), "wire");
  EXPECT_EQ(RoleOf(SpanName::kWire), "decode");
  EXPECT_EQ(ParseSpanName("wires"), std::nullopt);
}

TEST(SpanNameTest, LegsBelongToTheirRequest) {
  struct Case {
    std::string_view id, wanted;
    bool want;
  };
  for (const Case& c : {Case{"r", "r", true}, Case{"r.0", "r", true}, Case{"r.63", "r", true},
                        Case{"r.", "r", false}, Case{"r.x", "r", false}, Case{"r1", "r", false},
                        Case{"r.1x", "r", false}, Case{"q", "r", false}, Case{"r", "r.0", false}}) {
    EXPECT_EQ(IsOfRequest(c.id, c.wanted), c.want) << c.id << " of " << c.wanted;
  }
}

}  // namespace
}  // namespace penstock
