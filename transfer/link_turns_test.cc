// SPDX-License-Identifier: Apache-2.0
#include "transfer/link_turns.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/virtual_loop.h"
#include "transfer/link.h"

namespace penstock::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Turn = LinkTurns::Turn;

class LinkTurnsTest : public testing::Test {
 protected:
  LinkTurnsTest() { turns_->Set("wire", {.bytes_max = 100, .waiting_max = 4}); }
  // `name` is told when it begins, or why it does not.
  Turn Ask(MoveClass of, std::uint64_t bytes, const std::string& name,
           Duration within = seconds(1)) {
    return turns_->Ask("wire", of, bytes, loop_.Now() + within,
                       [this, name](const absl::Status& status) {
                         told_.push_back(status.ok() ? name : name + ": " + status.ToString());
                       });
  }
  std::vector<std::string> Told() {
    loop_.RunUntilIdle();
    return std::exchange(told_, {});
  }

  VirtualLoop loop_;
  SpanRing spans_;
  std::unique_ptr<LinkTurns> turns_ = std::make_unique<LinkTurns>(loop_, &spans_);
  std::vector<std::string> told_;
};

using Names = std::vector<std::string>;

TEST_F(LinkTurnsTest, BeginsAtOnceOrIsTold) {
  Turn first = Ask(MoveClass::kFetch, 75, "first");
  EXPECT_TRUE(first.begun());
  EXPECT_EQ(Told(), Names());  // It knows.
  Turn second = Ask(MoveClass::kFetch, 75, "second");
  EXPECT_TRUE(second.held());
  EXPECT_FALSE(second.begun());
  EXPECT_EQ(Told(), Names());
  first.End();
  first.End();
  EXPECT_FALSE(first.held());
  EXPECT_EQ(told_, Names()) << "not from inside";
  EXPECT_EQ(Told(), Names{"second"});
  EXPECT_TRUE(second.begun());
  EXPECT_EQ(turns_->queue("wire")->under_way().bytes, 75u);
  EXPECT_EQ(turns_->queue("other"), nullptr);
}

TEST_F(LinkTurnsTest, AHandoffOvertakesWhatWaits) {
  Turn busy = Ask(MoveClass::kHandoff, 100, "busy");
  std::vector<Turn> queued;
  for (const char* name : {"a", "b", "c"}) {
    queued.push_back(Ask(MoveClass::kWriteBack, 30, name));
  }
  Turn handoff = Ask(MoveClass::kHandoff, 60, "handoff");
  busy.End();
  EXPECT_EQ(Told(), (Names{"handoff", "a"}));
  handoff.End();
  EXPECT_EQ(Told(), Names()) << "half of the link is theirs";
  queued[0].End();
  EXPECT_EQ(Told(), Names{"b"});
}

TEST_F(LinkTurnsTest, ATurnThatEndsLeavesTheQueueAndAMovedOneStays) {
  Turn busy = Ask(MoveClass::kHandoff, 100, "busy");
  Turn kept;
  {
    Turn gone = Ask(MoveClass::kFetch, 10, "gone");
    Turn moved = Ask(MoveClass::kFetch, 10, "kept");
    kept = std::move(moved);
  }
  EXPECT_EQ(turns_->queue("wire")->waiting(MoveClass::kFetch), 1u);
  busy = Turn();
  EXPECT_EQ(Told(), Names{"kept"});
  kept = Ask(MoveClass::kFetch, 20, "another");  // Gives the first one back.
  EXPECT_TRUE(kept.begun());
  EXPECT_EQ(turns_->queue("wire")->under_way().bytes, 20u);
}

TEST_F(LinkTurnsTest, WaitsEndByTheirDeadlineAndAreBounded) {
  Turn busy = Ask(MoveClass::kHandoff, 100, "busy");
  std::vector<Turn> waiting;
  for (int i = 0; i < 4; ++i) {
    waiting.push_back(Ask(MoveClass::kFetch, 1, std::to_string(i), milliseconds(10 * (4 - i))));
  }
  Turn fifth = Ask(MoveClass::kFetch, 1, "fifth");
  Turn sixth = Ask(MoveClass::kFetch, 1, "sixth");
  EXPECT_FALSE(fifth.begun());
  sixth.End();  // It is not told any more.
  EXPECT_EQ(Told(), Names{"fifth: RESOURCE_EXHAUSTED: 4 movements of class fetch wait for the "
                          "link, at most 4"});
  EXPECT_FALSE(fifth.held());
  loop_.Advance(milliseconds(25));
  EXPECT_EQ(Told(), (Names{"3: DEADLINE_EXCEEDED: no turn on link wire in time",
                           "2: DEADLINE_EXCEEDED: no turn on link wire in time"}));
  EXPECT_FALSE(waiting[3].held());
  busy.End();
  EXPECT_EQ(Told(), (Names{"0", "1"}));
  loop_.Advance(seconds(1));
  EXPECT_EQ(Told(), Names()) << "what moves has no deadline here";
}

TEST_F(LinkTurnsTest, WhoIsToldMayAskAndEnd) {
  Turn busy = Ask(MoveClass::kHandoff, 100, "busy");
  Turn second, third;
  Turn first = turns_->Ask("wire", MoveClass::kFetch, 75, loop_.Now() + seconds(1),
                           [&](const absl::Status& status) {
                             EXPECT_TRUE(status.ok());
                             first.End();
                             third = Ask(MoveClass::kHandoff, 100, "third");
                             EXPECT_FALSE(third.begun()) << "others are being told";
                           });
  second = Ask(MoveClass::kFetch, 75, "second");
  busy.End();
  EXPECT_EQ(Told(), Names{"third"});
  third.End();
  EXPECT_EQ(Told(), Names{"second"});
}

TEST_F(LinkTurnsTest, TurnsMayOutliveIt) {
  Turn begun = Ask(MoveClass::kHandoff, 100, "begun");
  Turn waiting = Ask(MoveClass::kFetch, 100, "waiting");
  turns_.reset();
  EXPECT_FALSE(begun.begun());
  EXPECT_FALSE(waiting.held());
  begun.End();
  loop_.Advance(seconds(2));
  EXPECT_EQ(Told(), Names());
}

TEST_F(LinkTurnsTest, WaitsAreSeen) {
  Turn busy = Ask(MoveClass::kHandoff, 100, "busy");
  Turn waits = Ask(MoveClass::kReplication, 40, "waits");
  loop_.Advance(milliseconds(20));
  MetricsWriter writer;
  turns_->WriteMetrics(writer);
  const auto value = [](std::vector<MetricFamily> families, const std::string& name,
                        const std::string& of) -> std::optional<double> {
    for (const MetricFamily& family : families) {
      for (const MetricSample& sample : family.samples) {
        const MetricLabels want = {{"class", of}, {"link", "wire"}};
        if (family.name == name && sample.labels == want) return sample.value;
      }
    }
    return std::nullopt;
  };
  const std::vector<MetricFamily> before = writer.Take();
  EXPECT_EQ(value(before, "penstock_link_waiting", "replication"), 1);
  EXPECT_EQ(value(before, "penstock_link_under_way_bytes", "handoff"), 100);
  EXPECT_EQ(value(before, "penstock_link_turns_total", "replication"), 0);
  EXPECT_EQ(value(before, "penstock_link_turns_total", "fetch"), std::nullopt);
  busy.End();
  ASSERT_EQ(Told(), Names{"waits"});
  turns_->WriteMetrics(writer);
  const std::vector<MetricFamily> after = writer.Take();
  EXPECT_EQ(value(after, "penstock_link_waiting", "replication"), 0);
  EXPECT_EQ(value(after, "penstock_link_bytes_total", "replication"), 40);
  EXPECT_DOUBLE_EQ(value(after, "penstock_link_wait_seconds_total", "replication").value_or(0),
                   0.02);
  std::vector<std::string> spans;
  spans_.Read(0, 10, [&](std::uint64_t, const Span& span) {
    EXPECT_EQ(span.name, SpanName::kTurn);
    EXPECT_EQ(span.end - span.begin, milliseconds(20));
    EXPECT_EQ(span.bytes, 40u);
    spans.push_back(std::string(span.peer) + " " + std::string(span.text));
  });
  EXPECT_EQ(spans, Names{"wire replication"});
}

TEST(HostOfTest, IsTheAddressWithoutThePort) {
  EXPECT_EQ(HostOf("10.0.0.1:4000"), "10.0.0.1");
  EXPECT_EQ(HostOf("[fe80::1]:4000 (mlx5_0:1)"), "[fe80::1]");
}

}  // namespace
}  // namespace penstock::transfer
