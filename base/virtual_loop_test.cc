// SPDX-License-Identifier: Apache-2.0
#include "base/virtual_loop.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/seed_testing.h"

namespace penstock {
namespace {

using std::chrono::milliseconds;

TEST(VirtualLoopTest, PostedTasksRunInOrderAndNeverInsidePost) {
  VirtualLoop loop;
  std::string order;
  loop.Post([&] {
    order += 'a';
    loop.Post([&] { order += 'c'; });
    order += 'b';
  });
  EXPECT_EQ(order, "");
  EXPECT_EQ(loop.RunUntilIdle(), 2u);
  EXPECT_EQ(order, "abc");
}

TEST(VirtualLoopTest, EachTimerRunsAtItsTime) {
  VirtualLoop loop;
  const MonoTime start = loop.Now();
  std::vector<std::pair<int, Duration>> ran;
  const auto note = [&](int name) {
    return [&, name] { ran.push_back({name, loop.Now() - start}); };
  };
  loop.At(start + milliseconds(5), note(5));
  loop.At(start + milliseconds(2), note(2));
  loop.At(start + milliseconds(2), note(3));  // As the one before, but younger.
  loop.At(start - milliseconds(1), note(0));  // Due at once.
  const Loop::TimerId gone = loop.At(start + milliseconds(4), note(4));
  loop.CancelTimer(gone);
  loop.CancelTimer(gone);
  loop.At(start + milliseconds(1), [&] { loop.At(start + milliseconds(2), note(9)); });
  EXPECT_EQ(loop.RunUntilIdle(), 1u);
  loop.Advance(milliseconds(3));
  EXPECT_EQ(loop.Now(), start + milliseconds(3));
  EXPECT_EQ(*loop.next_timer(), start + milliseconds(5));
  loop.RunAll(MonoTime::max());
  EXPECT_EQ(loop.Now(), start + milliseconds(5));
  EXPECT_FALSE(loop.next_timer().has_value());
  using P = std::pair<int, Duration>;
  EXPECT_EQ(ran, (std::vector<P>{{0, milliseconds(0)},
                                 {2, milliseconds(2)},
                                 {3, milliseconds(2)},
                                 {9, milliseconds(2)},
                                 {5, milliseconds(5)}}));
}

TEST(VirtualLoopTest, StopsAfterTasksMax) {
  VirtualLoop loop;
  std::function<void()> again = [&] { loop.Post(again); };
  loop.Post(again);
  EXPECT_EQ(loop.RunUntilIdle(1000), 1000u);
}

TEST(VirtualLoopTest, WhatWaitsIsDestroyedUnrunAndMayCallBack) {
  int destroyed = 0, ran = 0;
  {
    VirtualLoop loop;
    const auto task = [&] {
      // Posts as it dies.
      return std::shared_ptr<int>(&ran, [&](int*) {
        ++destroyed;
        loop.Post([&] { ++ran; });
        loop.CancelTimer(Loop::TimerId{1});
      });
    };
    loop.At(loop.Now() + milliseconds(1), [held = task()] { ++*held; });
    loop.Post([held = task()] { ++*held; });
  }
  EXPECT_EQ(destroyed, 2);
  EXPECT_EQ(ran, 0);
}

// Against a list of timers that is searched for the earliest.
TEST(VirtualLoopTest, AgreesWithModel) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 random(seed);
    VirtualLoop loop;
    const MonoTime start = loop.Now();
    struct Timer {
      int time;
      bool cancelled = false;
      Loop::TimerId id;
    };
    std::vector<Timer> timers(1 + random() % 40);
    std::vector<std::size_t> ran;
    for (std::size_t i = 0; i < timers.size(); ++i) {
      timers[i].time = static_cast<int>(random() % 10);
      timers[i].id = loop.At(start + milliseconds(timers[i].time), [&ran, i] { ran.push_back(i); });
    }
    for (Timer& timer : timers) {
      if (random() % 4 == 0) {
        timer.cancelled = true;
        loop.CancelTimer(timer.id);
      }
    }
    std::vector<std::size_t> want;
    for (int time = 0; time < 10; ++time) {
      for (std::size_t i = 0; i < timers.size(); ++i) {
        if (timers[i].time == time && !timers[i].cancelled) want.push_back(i);
      }
    }
    loop.Advance(milliseconds(10));
    EXPECT_EQ(ran, want);
  }
}

}  // namespace
}  // namespace penstock
