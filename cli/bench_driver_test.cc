// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_driver.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/virtual_loop.h"

namespace penstock::cli {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Each request takes its number of output tokens in milliseconds.
class FakeTarget final : public BenchTarget {
 public:
  explicit FakeTarget(Loop& loop) : loop_(loop) {}

  void Send(const BenchRequest& request, MonoTime begin,
            std::function<void(BenchRecord)> done) override {
    const int id = next_++;
    live_[id] = {loop_.Now() - begin, begin, std::move(done)};
    live_max = std::max(live_max, live_.size());
    if (sending) sending();
    loop_.At(loop_.Now() + milliseconds(request.output_tokens), [this, id] { End(id, "ok"); });
  }
  void CancelAll() override {
    for (const auto& [id, live] : live_) loop_.Post([this, n = id] { End(n, "cancelled"); });
  }
  std::size_t live() const { return live_.size(); }

  std::size_t live_max = 0;
  std::function<void()> sending;  // Called by each Send.

 private:
  struct Live {
    Duration sent;
    MonoTime begin;
    std::function<void(BenchRecord)> done;
  };
  void End(int id, const char* code) {
    const auto at = live_.find(id);
    if (at == live_.end()) return;
    const Live live = std::move(at->second);
    live_.erase(at);
    live.done({.sent = live.sent, .end = loop_.Now() - live.begin, .code = code});
  }
  Loop& loop_;
  int next_ = 0;
  std::map<int, Live> live_;
};

std::vector<BenchRequest> Every(Duration gap, int count, std::int32_t takes_ms) {
  std::vector<BenchRequest> requests;
  for (int i = 0; i < count; ++i) {
    requests.push_back({.arrival = i * gap, .output_tokens = takes_ms});
  }
  return requests;
}

struct World {
  World(std::vector<BenchRequest> requests, BenchDriver::Options options)
      : target(loop), driver(loop, target, std::move(requests), options, nullptr) {
    driver.Start([this](BenchDriver::Result r) { result = std::move(r); });
  }
  VirtualLoop loop;
  FakeTarget target;
  BenchDriver driver;
  std::optional<BenchDriver::Result> result;
};

TEST(BenchDriverTest, AnOpenLoopWaitsForNobody) {
  World run(Every(milliseconds(10), 100, 95), {});
  run.loop.RunAll(run.loop.Now() + seconds(10));
  ASSERT_TRUE(run.result.has_value());
  ASSERT_EQ(run.result->records.size(), 100u);
  for (int i = 0; i < 100; ++i) {
    const BenchRecord& record = run.result->records[static_cast<std::size_t>(i)];
    EXPECT_EQ(record.arrival, milliseconds(10 * i));
    EXPECT_EQ(record.sent, record.arrival);
    EXPECT_EQ(record.end, record.arrival + milliseconds(95));
  }
  EXPECT_EQ(run.target.live_max, 10u);
  EXPECT_EQ(run.result->lag_ms.max, 0);
}

TEST(BenchDriverTest, SpeedupMovesArrivalsTogether) {
  World run(Every(milliseconds(10), 100, 5), {.speedup = 4});
  run.loop.RunAll(run.loop.Now() + seconds(10));
  ASSERT_TRUE(run.result.has_value());
  EXPECT_EQ(run.result->records.back().arrival, Duration(milliseconds(990)) / 4);
}

TEST(BenchDriverTest, AClosedLoopKeepsSoManyRunning) {
  World run(Every({}, 100, 20), {.concurrency = 8});
  EXPECT_EQ(run.target.live(), 8u);
  run.loop.RunAll(run.loop.Now() + seconds(10));
  ASSERT_TRUE(run.result.has_value());
  EXPECT_EQ(run.target.live_max, 8u);
  ASSERT_EQ(run.result->records.size(), 100u);
  EXPECT_EQ(run.result->records[8].arrival, milliseconds(20));
  EXPECT_EQ(run.result->records.back().end, milliseconds(20) * 13);
}

TEST(BenchDriverTest, MoreStreamsThanRequests) {
  World run(Every({}, 3, 20), {.concurrency = 8});
  run.loop.RunAll(run.loop.Now() + seconds(10));
  ASSERT_TRUE(run.result.has_value());
  EXPECT_EQ(run.result->records.size(), 3u);
}

TEST(BenchDriverTest, NothingToSendEndsAtOnce) {
  World run({}, {});
  run.loop.RunUntilIdle();
  EXPECT_TRUE(run.result.has_value());
}

TEST(BenchDriverTest, SendForEndsBothLoops) {
  for (const std::int32_t concurrency : {0, 2}) {
    SCOPED_TRACE(concurrency);
    World run(Every(milliseconds(10), 100, 10),
              {.concurrency = concurrency, .send_for = milliseconds(205)});
    run.loop.RunAll(run.loop.Now() + seconds(10));
    ASSERT_TRUE(run.result.has_value());
    EXPECT_EQ(run.result->records.size(), concurrency == 0 ? 21u : 42u);
  }
}

TEST(BenchDriverTest, StopCancelsWhatRuns) {
  for (const std::int32_t concurrency : {0, 2}) {
    SCOPED_TRACE(concurrency);
    World run(Every(milliseconds(10), 100, 10'000), {.concurrency = concurrency});
    run.loop.Advance(milliseconds(25));
    run.driver.Stop();
    run.loop.RunUntilIdle();
    ASSERT_TRUE(run.result.has_value());
    EXPECT_EQ(run.result->records.size(), concurrency == 0 ? 3u : 2u);
    for (const BenchRecord& record : run.result->records) EXPECT_EQ(record.code, "cancelled");
  }
}

// A loop on which time can pass while a task runs.
class SlowLoop final : public Loop {
 public:
  void Post(std::function<void()> task) override { loop.Post(std::move(task)); }
  MonoTime Now() const override { return loop.Now() + passed; }
  TimerId At(MonoTime when, std::function<void()> task) override {
    return loop.At(when - passed, std::move(task));
  }
  void CancelTimer(TimerId timer) override { loop.CancelTimer(timer); }
  VirtualLoop loop;
  Duration passed{};
};

TEST(BenchDriverTest, ASlowClientShowsInItsLag) {
  SlowLoop loop;
  FakeTarget target(loop);
  target.sending = [&] { loop.passed += milliseconds(3); };
  // Three milliseconds for each; one comes every two.
  BenchDriver driver(loop, target, Every(milliseconds(2), 20, 50), {}, nullptr);
  std::optional<BenchDriver::Result> result;
  driver.Start([&](BenchDriver::Result r) { result = std::move(r); });
  loop.loop.RunAll(loop.loop.Now() + seconds(10));
  ASSERT_TRUE(result.has_value());
  EXPECT_GT(result->lag_ms.max, 10);
  const BenchRecord& last = result->records.back();
  EXPECT_GT(last.sent - last.arrival, milliseconds(10));
}

}  // namespace
}  // namespace penstock::cli
