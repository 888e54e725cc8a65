// SPDX-License-Identifier: Apache-2.0
#include "transfer/link_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "base/seed_testing.h"

namespace penstock::transfer {
namespace {

using MoveId = LinkQueue::MoveId;
using std::chrono::milliseconds;
using std::chrono::seconds;

const MonoTime kStart = MonoTime(seconds(100));
constexpr MonoTime kNever = MonoTime::max();

TEST(LinkQueueTest, ClassesHaveNames) {
  EXPECT_EQ(ToString(MoveClass::kHandoff), "handoff");
  EXPECT_EQ(ToString(MoveClass::kWriteBack), "write-back");
}

TEST(LinkQueueTest, TheMostUrgentGoesFirstThenWhoCameFirst) {
  LinkQueue queue({.bytes_max = 100});
  const MoveId busy = *queue.Ask(MoveClass::kHandoff, 100, kNever, kStart);
  ASSERT_EQ(queue.Start(kStart)->id, busy);
  std::vector<MoveId> want;
  for (const MoveClass of : {MoveClass::kWriteBack, MoveClass::kReplication, MoveClass::kPromotion,
                             MoveClass::kPrefetch, MoveClass::kFetch, MoveClass::kHandoff}) {
    const MoveId first = *queue.Ask(of, 60, kNever, kStart);
    const MoveId second = *queue.Ask(of, 60, kNever, kStart);
    want.insert(want.begin(), {first, second});
  }
  EXPECT_FALSE(queue.Start(kStart).has_value());
  queue.End(busy);
  std::vector<MoveId> got;
  while (const auto started = queue.Start(kStart + milliseconds(3))) {
    EXPECT_EQ(started->waited, milliseconds(3));
    EXPECT_EQ(queue.under_way().moves, 1u);
    got.push_back(started->id);
    queue.End(started->id);
  }
  EXPECT_EQ(got, want);
}

TEST(LinkQueueTest, SharesNest) {
  struct Case {
    const char* name;
    MoveClass under_way;
    std::uint64_t bytes;
    MoveClass asks;
    std::uint64_t asks_bytes;
    bool starts;
  };
  for (const Case& c : {
           Case{"half is for what nobody waits for", MoveClass::kWriteBack, 40,
                MoveClass::kPrefetch, 10, true},
           Case{"and no more", MoveClass::kWriteBack, 40, MoveClass::kPrefetch, 11, false},
           Case{"three quarters with fetches", MoveClass::kWriteBack, 50, MoveClass::kFetch, 25,
                true},
           Case{"and no more of these", MoveClass::kWriteBack, 50, MoveClass::kFetch, 26, false},
           Case{"all with handoffs", MoveClass::kFetch, 75, MoveClass::kHandoff, 25, true},
           Case{"and no more at all", MoveClass::kFetch, 75, MoveClass::kHandoff, 26, false},
           Case{"one alone may be larger", MoveClass::kHandoff, 0, MoveClass::kWriteBack, 1000,
                true},
           Case{"beside a handoff, too, there is no room for it", MoveClass::kHandoff, 10,
                MoveClass::kWriteBack, 1000, false},
       }) {
    SCOPED_TRACE(c.name);
    LinkQueue queue({.bytes_max = 100});
    if (c.bytes > 0) {
      ASSERT_TRUE(queue.Ask(c.under_way, c.bytes, kNever, kStart).ok());
      ASSERT_TRUE(queue.Start(kStart).has_value());
    }
    ASSERT_TRUE(queue.Ask(c.asks, c.asks_bytes, kNever, kStart).ok());
    EXPECT_EQ(queue.Start(kStart).has_value(), c.starts);
  }
}

TEST(LinkQueueTest, WhatWaitsIsBoundedByClassAndEndsByItsDeadline) {
  LinkQueue queue({.bytes_max = 1, .waiting_max = 2});
  ASSERT_TRUE(queue.Ask(MoveClass::kHandoff, 1, kNever, kStart).ok());
  ASSERT_TRUE(queue.Start(kStart).has_value());
  EXPECT_EQ(queue.NextDeadline(), kNever);
  const MoveId late = *queue.Ask(MoveClass::kFetch, 1, kStart + seconds(2), kStart);
  const MoveId soon = *queue.Ask(MoveClass::kFetch, 1, kStart + seconds(1), kStart);
  const absl::Status full = queue.Ask(MoveClass::kFetch, 1, kNever, kStart).status();
  EXPECT_EQ(full.message(), "2 movements of class fetch wait for the link, at most 2");
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_TRUE(queue.Ask(MoveClass::kWriteBack, 1, kNever, kStart).ok());
  EXPECT_EQ(queue.NextDeadline(), kStart + seconds(1));
  EXPECT_TRUE(queue.Expire(kStart).empty());
  EXPECT_EQ(queue.Expire(kStart + seconds(1)), std::vector<MoveId>{soon});
  EXPECT_EQ(queue.NextDeadline(), kStart + seconds(2));
  queue.End(late);
  queue.End(late);  // Over: nothing happens.
  EXPECT_EQ(queue.NextDeadline(), kNever);
  EXPECT_EQ(queue.waiting(MoveClass::kFetch), 0u);
}

// However many handoffs and fetches come, the one that has waited longest has one turn in 16.
TEST(LinkQueueTest, NobodyStarves) {
  for (const std::uint64_t bytes : {1u, 10u, 40u, 500u}) {
    SCOPED_TRACE(bytes);
    LinkQueue queue({.bytes_max = 100, .oldest_every = 16});
    std::deque<MoveId> moving;
    const auto flood = [&] {
      while (queue.waiting(MoveClass::kFetch) < 8) {
        ASSERT_TRUE(queue.Ask(MoveClass::kHandoff, 10, kNever, kStart).ok());
        ASSERT_TRUE(queue.Ask(MoveClass::kFetch, 10, kNever, kStart).ok());
      }
    };
    flood();
    const MoveId last = *queue.Ask(MoveClass::kWriteBack, bytes, kNever, kStart);
    int turns = 0;
    bool began = false;
    for (; !began && turns < 2000; ++turns) {
      while (const auto started = queue.Start(kStart)) {
        moving.push_back(started->id);
        began = began || started->id == last;
      }
      ASSERT_FALSE(moving.empty());
      queue.End(moving.front());
      moving.pop_front();
      flood();
    }
    EXPECT_TRUE(began);
    // 16 were before it, each of which is the oldest once.
    EXPECT_LE(turns, 16 * 17 + 32);
  }
}

// ---- The same by a slow and obvious version.

struct Model {
  struct Move {
    MoveId id{};
    std::size_t of = 0;
    std::uint64_t bytes = 0;
    MonoTime deadline;
    bool under_way = false;
  };
  LinkQueue::Options options;
  std::vector<Move> moves = {};  // In the order they were asked.
  std::uint32_t turns = 0;

  // The first class whose share is too full for it; kMoveClasses: none.
  std::size_t Lacks(const Move& move) const {
    for (std::size_t c = 0; c <= move.of; ++c) {
      std::uint64_t bytes = 0;
      std::size_t count = 0;
      for (const Move& other : moves) {
        if (!other.under_way || other.of < c) continue;
        bytes += other.bytes;
        ++count;
      }
      const std::uint64_t share = LinkQueue::kShares[c];
      if (count > 0 && (bytes + move.bytes > options.bytes_max * share / 100 ||
                        count + 1 > options.moves_max * share / 100)) {
        return c;
      }
    }
    return kMoveClasses;
  }
  Move* Next() {
    std::vector<Move*> order;
    for (Move& move : moves) {
      if (!move.under_way) order.push_back(&move);
    }
    if (order.empty()) return nullptr;
    Move* const oldest = order.front();
    std::ranges::stable_sort(order, {}, [](const Move* move) { return move->of; });
    const bool its_turn = turns + 1 >= options.oldest_every;
    if (its_turn) order.insert(order.begin(), oldest);
    std::size_t closed = kMoveClasses;
    for (Move* const move : order) {
      if (move->of >= closed) continue;
      const std::size_t lacks = Lacks(*move);
      closed = std::min(closed, lacks);
      if (lacks < kMoveClasses) continue;
      if (!its_turn) ++turns;
      if (its_turn && move == oldest) turns = 0;
      return move;
    }
    return nullptr;
  }
};

TEST(LinkQueueTest, AgreesWithModel) {
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    const RunningSeed running(seed);
    std::mt19937_64 random(seed);
    Model model{.options = {.bytes_max = 100,
                            .moves_max = 4 + random() % 12,
                            .waiting_max = 40,
                            .oldest_every = static_cast<std::uint32_t>(1 + random() % 8)}};
    LinkQueue queue(model.options);
    MonoTime now = kStart;
    std::size_t asked = 0, begun = 0, cancelled = 0, expired = 0;
    const auto start = [&] {
      while (true) {
        const auto started = queue.Start(now);
        Model::Move* const want = model.Next();
        ASSERT_EQ(started.has_value(), want != nullptr);
        if (want == nullptr) break;
        ASSERT_EQ(started->id, want->id);
        want->under_way = true;
        ++begun;
      }
      for (std::size_t c = 0; c < kMoveClasses; ++c) {
        std::uint64_t bytes = 0;
        std::size_t count = 0;
        for (std::size_t d = c; d < kMoveClasses; ++d) {
          bytes += queue.under_way(static_cast<MoveClass>(d)).bytes;
          count += queue.under_way(static_cast<MoveClass>(d)).moves;
        }
        ASSERT_TRUE(count <= 1 || bytes <= 100 * LinkQueue::kShares[c] / 100);
        ASSERT_TRUE(count <= 1 || count <= model.options.moves_max * LinkQueue::kShares[c] / 100);
      }
    };
    const auto end_any = [&](bool under_way) {
      std::vector<std::size_t> some;
      for (std::size_t i = 0; i < model.moves.size(); ++i) {
        if (model.moves[i].under_way == under_way) some.push_back(i);
      }
      if (some.empty()) return false;
      const std::size_t which = some[random() % some.size()];
      queue.End(model.moves[which].id);
      model.moves.erase(model.moves.begin() + static_cast<std::ptrdiff_t>(which));
      return true;
    };
    for (int step = 0; step < 1000; ++step) {
      now += milliseconds(random() % 5);
      switch (random() % 8) {
        case 0:
          if (end_any(false)) ++cancelled;
          break;
        case 1:
        case 2:
        case 3:
          end_any(true);
          break;
        case 4: {
          std::vector<MoveId> want;
          std::erase_if(model.moves, [&](const Model::Move& move) {
            if (move.under_way || move.deadline > now) return false;
            want.push_back(move.id);
            return true;
          });
          std::vector<MoveId> got = queue.Expire(now);
          std::ranges::sort(got);
          ASSERT_EQ(got, want);
          expired += got.size();
          break;
        }
        default: {
          const std::size_t of = random() % kMoveClasses;
          const std::uint64_t bytes = random() % 10 == 0 ? 200 : 1 + random() % 40;
          const MonoTime deadline = now + milliseconds(random() % 400);
          if (random() % 2 == 0) {
            const bool nobody_waits = std::ranges::all_of(
                model.moves, [](const Model::Move& move) { return move.under_way; });
            model.moves.push_back({.of = of, .bytes = bytes, .deadline = deadline});
            Model::Move* const want = nobody_waits ? model.Next() : nullptr;
            const auto at_once = queue.AskAndStart(static_cast<MoveClass>(of), bytes);
            ASSERT_EQ(at_once.has_value(), want != nullptr);
            if (want != nullptr) {
              want->id = *at_once;
              want->under_way = true;
              ++asked;
              ++begun;
              break;
            }
            model.moves.pop_back();
          }
          const auto id = queue.Ask(static_cast<MoveClass>(of), bytes, deadline, now);
          const auto waiting = std::ranges::count_if(model.moves, [&](const Model::Move& move) {
            return !move.under_way && move.of == of;
          });
          ASSERT_EQ(id.ok(), waiting < 40);
          if (!id.ok()) break;
          ++asked;
          model.moves.push_back({.id = *id, .of = of, .bytes = bytes, .deadline = deadline});
        }
      }
      start();
      if (testing::Test::HasFatalFailure()) return;
    }
    // What is left begins, each once.
    while (end_any(true)) start();
    EXPECT_EQ(asked, begun + cancelled + expired);
    EXPECT_EQ(queue.under_way().bytes, 0u);
    EXPECT_EQ(queue.NextDeadline(), kNever);
  }
}

}  // namespace
}  // namespace penstock::transfer
