// SPDX-License-Identifier: Apache-2.0
#include "engine/engine_thread.h"

#include <atomic>
#include <future>
#include <map>
#include <memory>
#include <vector>

#include "engine/fake_worker.h"
#include "gtest/gtest.h"

namespace penstock::engine {
namespace {

using Tokens = std::map<RequestId, std::vector<TokenId>>;

// A thread, the answers that it made, and their end.
class EngineThreadTest : public testing::Test {
 protected:
  void Start(WorkerSetup setup) {
    worker_ = std::make_unique<Worker>(std::move(setup));
    thread_ = std::make_unique<EngineThread>(
        std::move(worker_->engine), [this](Engine&, const StepReport& report) {
          ++steps_;
          for (const TokenOutput& output : report.outputs) {
            if (output.token.has_value()) tokens_[output.request].push_back(output.token->token);
            if (output.finish.has_value() && --wanted_ == 0) finished_.set_value();
          }
        });
  }

  std::unique_ptr<Worker> worker_;
  Tokens tokens_;  // On the thread alone, as wanted_.
  int wanted_ = 0;
  std::promise<void> finished_;
  std::atomic<int> steps_ = 0;
  std::unique_ptr<EngineThread> thread_;
};

TEST_F(EngineThreadTest, StepsAsLongAsThereIsSomethingToCompute) {
  Start({});
  std::promise<void> submitted;
  thread_->Post([&](Engine& engine) {
    wanted_ = 3;
    for (TokenId t = 1; t <= 3; ++t) {
      ASSERT_TRUE(engine.Submit(Greedy(std::vector<TokenId>(9, t), 20)).ok());
    }
  });
  finished_.get_future().wait();
  Tokens tokens;
  thread_->Run([&](Engine& engine) {
    EXPECT_TRUE(engine.idle());
    tokens = tokens_;
  });
  ASSERT_EQ(tokens.size(), 3u);
  for (const auto& [request, answer] : tokens) EXPECT_EQ(answer.size(), 20u);
}

TEST_F(EngineThreadTest, TasksRunInTheirOrderBetweenSteps) {
  Start({});
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) thread_->Post([&order, i](Engine&) { order.push_back(i); });
  thread_->Run([&](Engine&) {
    ASSERT_EQ(order.size(), 100u);
    for (int i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
  });
}

// An answer that waits for memory which a reservation holds makes no steps until that is over.
TEST_F(EngineThreadTest, RestsWhileMemoryIsHeld) {
  Start({.slabs = 4});
  ReservationId reservation{};
  thread_->Run([&](Engine& engine) {
    const std::vector<TokenId> moved(16, 1);
    const auto reserved = engine.Reserve(16, ChainsOf(moved, "", kBlockTokens));
    ASSERT_TRUE(reserved.ok()) << reserved.status();
    reservation = reserved->id;
    wanted_ = 1;
    ASSERT_TRUE(engine.Submit(Greedy(std::vector<TokenId>(14, 2), 5)).ok());
  });
  int before = 0;
  // Each task is followed by a step at most: were it not resting, there would be any number.
  for (int i = 0; i < 3; ++i) thread_->Run([&](Engine&) { before = steps_; });
  for (int i = 0; i < 50; ++i) std::this_thread::yield();
  EXPECT_LE(steps_, before + 1);
  thread_->Post([&](Engine& engine) { engine.EndReservation(reservation, 0); });
  finished_.get_future().wait();
}

TEST_F(EngineThreadTest, EndsAmidWorkAndDropsWhatWaits) {
  Start({});
  const auto held = std::make_shared<int>(0);
  std::promise<void> inside;
  thread_->Post([&](Engine& engine) {
    wanted_ = 1000;
    for (TokenId t = 1; t <= 50; ++t) {
      ASSERT_TRUE(engine.Submit(Greedy(std::vector<TokenId>(9, t), 500)).ok());
    }
    inside.set_value();
  });
  inside.get_future().wait();
  for (int i = 0; i < 100; ++i) thread_->Post([held](Engine&) {});
  thread_.reset();
  EXPECT_EQ(held.use_count(), 1);
}

}  // namespace
}  // namespace penstock::engine
