// SPDX-License-Identifier: Apache-2.0
#include "gateway/event_queue.h"

#include <gtest/gtest.h>

#include <string>

namespace penstock::gateway {
namespace {

TEST(EventQueueTest, WakesOnceAndKeepsOrder) {
  int woken = 0;
  const auto queue = std::make_shared<EventQueue>(EventQueue::Limits{}, [&] { ++woken; });
  const auto first = queue->MakeSink(0);
  const auto second = queue->MakeSink(1);
  EXPECT_TRUE(first->OnEvent(Delta{.text = "a"}));
  EXPECT_TRUE(second->OnEvent(Delta{.text = "b"}));
  first->OnEnd(absl::UnavailableError("gone"), std::chrono::seconds(2));
  EXPECT_EQ(woken, 1);
  const std::vector<EventQueue::Item> items = queue->Take();
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(std::get<Delta>(items[0].event).text, "a");
  EXPECT_EQ(items[1].part, 1u);
  ASSERT_TRUE(items[2].end.has_value());
  EXPECT_EQ(items[2].end->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(items[2].end->retry_after, std::chrono::seconds(2));
  EXPECT_TRUE(queue->Take().empty());
  first->OnEvent(Delta{});
  EXPECT_EQ(woken, 2);
}

TEST(EventQueueTest, IsBounded) {
  const auto by_count = std::make_shared<EventQueue>(EventQueue::Limits{.events_max = 2}, [] {});
  const auto sink = by_count->MakeSink(0);
  EXPECT_TRUE(sink->OnEvent(Delta{}));
  EXPECT_TRUE(sink->OnEvent(Delta{}));
  EXPECT_FALSE(sink->OnEvent(Delta{}));
  sink->OnEnd(absl::OkStatus(), {});  // An end always fits.
  EXPECT_EQ(by_count->Take().size(), 3u);
  EXPECT_TRUE(sink->OnEvent(Delta{}));

  const auto by_bytes = std::make_shared<EventQueue>(EventQueue::Limits{.bytes_max = 1000}, [] {});
  const auto other = by_bytes->MakeSink(0);
  EXPECT_TRUE(other->OnEvent(Delta{.text = std::string(5000, 'x')}));  // One fits in any case.
  EXPECT_FALSE(other->OnEvent(Delta{.text = "y"}));
}

TEST(EventQueueTest, DetachedHearsNothing) {
  int woken = 0;
  const auto held = std::make_shared<int>(0);
  const auto queue =
      std::make_shared<EventQueue>(EventQueue::Limits{}, [&woken, held] { ++woken; });
  const auto sink = queue->MakeSink(0);
  EXPECT_EQ(held.use_count(), 2);
  queue->Detach();
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_TRUE(sink->OnEvent(Delta{}));
  sink->OnEnd(absl::CancelledError(""), {});
  EXPECT_TRUE(queue->Take().empty());
  EXPECT_EQ(woken, 0);
}

}  // namespace
}  // namespace penstock::gateway
