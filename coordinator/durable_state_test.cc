// SPDX-License-Identifier: Apache-2.0
#include "coordinator/durable_state.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/seed_testing.h"
#include "base/virtual_loop.h"
#include "coordinator/fake_etcd.h"

namespace penstock::coordinator {
namespace {

using namespace std::chrono_literals;

Registration Of(const std::string& name, std::uint64_t epoch) {
  Registration r;
  r.ref = {name, epoch};
  r.role = Role::kDecode;
  r.model = "m";
  r.endpoint = "10.0.0.1:7";
  r.transfer_address = "tcp:10.0.0.1:8";
  r.transfer_epoch = 3;
  return r;
}

class DurableStateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    store_.AdvanceTo(loop_.Now());
    Lead();
  }
  // As a coordinator that has just won.
  void Lead(std::size_t ended_max = 100) {
    store_.keys.erase("/p/leader");
    store_.Put("/p/leader", "{}");
    state_ = std::make_unique<DurableState>(
        loop_, etcd_,
        DurableState::Options{.prefix = "/p/", .leader_key = "/p/leader", .ended_max = ended_max},
        [this] { ++fenced_; });
    Load();
  }
  void Load() {
    state_->Load(store_.keys.at("/p/leader").created,
                 [this](absl::StatusOr<DurableState::Loaded> loaded) { loaded_ = loaded; });
    Advance(100ms);
  }
  void Advance(Duration by) {
    loop_.Advance(by);
    store_.AdvanceTo(loop_.Now());
  }

  VirtualLoop loop_;
  FakeStore store_;
  FakeEtcd etcd_{loop_, store_};
  std::unique_ptr<DurableState> state_;
  absl::StatusOr<DurableState::Loaded> loaded_ = absl::UnknownError("not loaded");
  int fenced_ = 0;
};

TEST_F(DurableStateTest, ANewLifeIsDurableBeforeItIsKnown) {
  bool done = false;
  EXPECT_FALSE(state_->IsDurable({"a", 7}));
  state_->Began(Of("a", 7), [&] {
    done = true;
    EXPECT_EQ(store_.ValueOf("/p/epochs/a"), "6");
  });
  EXPECT_FALSE(done) << "never from inside";
  Advance(100ms);
  EXPECT_TRUE(done);
  EXPECT_TRUE(state_->IsDurable({"a", 7}));
  EXPECT_FALSE(state_->IsDurable({"a", 9}));
  EXPECT_EQ(store_.ValueOf("/p/workers/a"),
            "{\"role\":\"decode\",\"model\":\"m\",\"endpoint\":\"10.0.0.1:7\",\"session_epoch\":7,"
            "\"transfer_epoch\":3,\"transfer_address\":\"tcp:10.0.0.1:8\"}");
  EXPECT_NE(store_.keys.at("/p/workers/a").lease, 0);
  EXPECT_EQ(store_.keys.at("/p/epochs/a").lease, 0);
  state_->Ended({"a", 7});
  Advance(100ms);
  EXPECT_EQ(store_.ValueOf("/p/workers/a"), "(none)");
  EXPECT_EQ(store_.ValueOf("/p/epochs/a"), "7");
  EXPECT_EQ(store_.leases(), 0u);
}

TEST_F(DurableStateTest, AnEarlierLifeEndsUnderALaterOne) {
  state_->Began(Of("a", 5), nullptr);
  state_->Began(Of("a", 8), nullptr);
  state_->Ended({"a", 5});
  Advance(100ms);
  EXPECT_EQ(store_.ValueOf("/p/epochs/a"), "7");
  EXPECT_NE(store_.ValueOf("/p/workers/a").find("\"session_epoch\":8"), std::string::npos);
  state_->Began(Of("a", 6), nullptr);  // Late.
  Advance(100ms);
  EXPECT_EQ(store_.ValueOf("/p/epochs/a"), "7");
  EXPECT_NE(store_.ValueOf("/p/workers/a").find("\"session_epoch\":8"), std::string::npos);
}

TEST_F(DurableStateTest, ManyAreWrittenTogether) {
  int done = 0;
  const int before = etcd_.calls;
  for (int i = 0; i < 120; ++i) state_->Began(Of(absl::StrCat("w", i), 5), [&] { ++done; });
  Advance(200ms);
  EXPECT_EQ(done, 120);
  EXPECT_LE(etcd_.calls - before, 120 + 4) << "a lease each, and a few transactions";
  EXPECT_EQ(store_.keys.size(), 1u + 240u);
}

TEST_F(DurableStateTest, TheNextCoordinatorReadsIt) {
  state_->Began(Of("a", 5), nullptr);
  state_->Began(Of("b", 6), nullptr);
  state_->Ended({"b", 6});
  Advance(100ms);
  store_.Put("/p/epochs/bad", "x");
  store_.Put("/p/epochs/" + std::string(65, 'n'), "1");
  store_.Put("/p/workers/bad", "{\"role\":\"king\",\"session_epoch\":1}");
  store_.Put("/p/workers/worse", "\xff\xfe[");
  Lead();
  ASSERT_TRUE(loaded_.ok()) << loaded_.status();
  std::map<std::string, std::uint64_t> ended;
  for (const WorkerRef& ref : loaded_->ended) ended[ref.name] = ref.epoch;
  EXPECT_EQ(ended, (std::map<std::string, std::uint64_t>{{"a", 4}, {"b", 6}}));
  ASSERT_EQ(loaded_->workers.size(), 1u);
  EXPECT_EQ(loaded_->workers[0].ref.name, "a");
  EXPECT_EQ(loaded_->workers[0].ref.epoch, 5u);
  EXPECT_EQ(loaded_->workers[0].endpoint, "10.0.0.1:7");
  EXPECT_TRUE(state_->IsDurable({"a", 5})) << "it goes on without waiting";
  EXPECT_FALSE(state_->IsDurable({"b", 8}));
}

TEST_F(DurableStateTest, NobodyWaitsForAStoreThatIsAway) {
  etcd_.away = true;
  int done = 0;
  state_->Began(Of("a", 5), [&] { ++done; });
  Advance(FakeEtcd::kWithin + 10ms);
  EXPECT_EQ(done, 1) << "the first one finds out";
  state_->Began(Of("b", 5), [&] { ++done; });
  loop_.RunUntilIdle();
  EXPECT_EQ(done, 2) << "the next one does not ask";
  EXPECT_EQ(state_->late(), 2u);
  Advance(60s);
  EXPECT_GT(state_->errors(), 10u);
  EXPECT_EQ(store_.keys.size(), 1u);
  etcd_.away = false;
  Advance(3s);
  EXPECT_EQ(store_.keys.size(), 1u + 4u) << "written later";
  state_->Began(Of("c", 5), [&] { ++done; });
  EXPECT_FALSE(state_->IsDurable({"c", 5}));
  Advance(100ms);
  EXPECT_EQ(done, 3);
  EXPECT_EQ(state_->late(), 2u) << "it waited again";
}

TEST_F(DurableStateTest, ASessionIsThereAsLongAsTheWorkerReports) {
  state_->Began(Of("a", 5), nullptr);
  for (int second = 0; second < 30; ++second) {
    Advance(1s);
    state_->Reported({"a", 5});
    state_->Reported({"a", 4});
    state_->Reported({"nobody", 1});
  }
  EXPECT_NE(store_.ValueOf("/p/workers/a"), "(none)");
  Advance(6s);
  EXPECT_EQ(store_.ValueOf("/p/workers/a"), "(none)");
  state_->Reported({"a", 5});  // It was only the line to the store.
  Advance(100ms);
  EXPECT_NE(store_.ValueOf("/p/workers/a"), "(none)");
}

TEST_F(DurableStateTest, WhoLeadsNoMoreWritesNothing) {
  state_->Began(Of("a", 5), nullptr);
  Advance(100ms);
  store_.keys.erase("/p/leader");
  store_.Put("/p/leader", "another");
  const auto before = store_.keys.size();
  bool done = false;
  state_->Began(Of("b", 5), [&] { done = true; });
  state_->Ended({"a", 5});
  Advance(100ms);
  EXPECT_GE(fenced_, 1);
  EXPECT_TRUE(done);
  EXPECT_EQ(store_.ValueOf("/p/epochs/a"), "4");
  EXPECT_EQ(store_.ValueOf("/p/epochs/b"), "(none)");
  EXPECT_LE(store_.keys.size(), before);
  state_->Load(1, [this](absl::StatusOr<DurableState::Loaded> loaded) { loaded_ = loaded; });
  Advance(100ms);
  EXPECT_EQ(loaded_.status().code(), absl::StatusCode::kAborted);
  Load();  // It leads again: what is known is written.
  EXPECT_TRUE(loaded_.ok());
  Advance(3s);
  EXPECT_EQ(store_.ValueOf("/p/epochs/a"), "5");
  EXPECT_EQ(store_.ValueOf("/p/epochs/b"), "4");
}

TEST_F(DurableStateTest, TheOldestEndedLivesAreForgotten) {
  Lead(3);
  for (int i = 1; i <= 6; ++i) {
    state_->Began(Of(absl::StrCat("w", i), 5), nullptr);
    Advance(50ms);
    state_->Ended({absl::StrCat("w", i), 5});
    Advance(50ms);
  }
  EXPECT_EQ(store_.ValueOf("/p/epochs/w3"), "(none)");
  EXPECT_EQ(store_.ValueOf("/p/epochs/w4"), "5");
  EXPECT_EQ(store_.keys.size(), 1u + 3u);
}

// Whatever happens on the way: once the store answers again it has what is true, and no life was
// known before it was durable unless the store did not answer.
TEST_F(DurableStateTest, AgreesWithModel) {
  for (int seed = 0; seed < 100; ++seed) {
    const RunningSeed running(seed);
    store_.LoseEverything();
    etcd_.away = etcd_.answers_lost = false;
    Lead();
    std::mt19937_64 random(static_cast<std::uint64_t>(seed));
    std::map<std::string, std::uint64_t> lives, ended;
    std::uint64_t epoch = 1;
    std::size_t early = 0;  // Known before they were durable.
    for (int step = 0; step < 200; ++step) {
      const std::string name = absl::StrCat("w", random() % 6);
      const auto live = lives.find(name);
      switch (random() % 8) {
        case 0:
        case 1:
        case 2:
          if (live != lives.end()) ended[name] = live->second;
          lives[name] = epoch += 2;
          ended[name] = std::max(ended[name], epoch - 1);
          state_->Began(Of(name, epoch), [this, name, e = epoch, &early] {
            early += state_->IsDurable({name, e}) ? 0 : 1;
          });
          break;
        case 3:
          if (live == lives.end()) break;
          state_->Ended({name, live->second});
          ended[name] = live->second;
          lives.erase(live);
          break;
        case 4:
          if (live != lives.end()) state_->Reported({name, live->second});
          break;
        case 5:
          etcd_.away = seed % 2 == 1 && random() % 4 == 0;
          break;
        case 6:
          etcd_.answers_lost = seed % 2 == 1 && random() % 4 == 0;
          break;
        case 7:
          Advance(std::chrono::milliseconds(random() % 3000));
          break;
      }
      Advance(std::chrono::milliseconds(random() % 10));
    }
    etcd_.away = etcd_.answers_lost = false;
    for (int i = 0; i < 10; ++i) {
      Advance(1s);
      for (const auto& [name, e] : lives) state_->Reported({name, e});
    }
    EXPECT_LE(early, state_->late());
    EXPECT_EQ(state_->late() > 0, seed % 2 == 1);
    std::map<std::string, std::uint64_t> got_ended, got_lives;
    for (const auto& [key, kv] : store_.keys) {
      if (key.starts_with("/p/epochs/")) got_ended[key.substr(10)] = std::stoull(kv.value);
      if (!key.starts_with("/p/workers/")) continue;
      const std::size_t at = kv.value.find("epoch\":") + 7;
      got_lives[key.substr(11)] = std::stoull(kv.value.substr(at));
    }
    EXPECT_EQ(got_ended, ended);
    EXPECT_EQ(got_lives, lives);
    EXPECT_EQ(store_.leases(), lives.size());
    ASSERT_FALSE(HasFailure());
  }
}

}  // namespace
}  // namespace penstock::coordinator
