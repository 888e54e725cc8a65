// SPDX-License-Identifier: Apache-2.0
// The coordinator among workers that accept, refuse, hang, die and come back, and store nodes that
// come and go, over a network that delays, reorders, repeats and loses messages. After each run every
// request has ended once, and no one holds or books anything.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <queue>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/seed_testing.h"
#include "coordinator/coordinator.h"

namespace penstock::coordinator {
namespace {

using namespace std::chrono_literals;
using Kind = WorkerEvent::Kind;

class Cluster {
 public:
  explicit Cluster(std::uint32_t seed) : random_(seed) {
    Coordinator::Options options;
    const char* const policies[] = {"cost", "cost", "least-loaded", "round-robin"};
    options.policy.name = policies[Draw(4)];
    options.members.ttl = 3s;
    options.queued_max = kQueuedMax;
    options.requests_max = kRequestsMax;
    options.end_within = 60s;
    options.first_token_within = 20s;
    options.resume_timeout = 2s;
    options.verify_pairs = Draw(2) == 0;
    options.preflight_timeout = 1s;
    options.preflight_retry = 300ms;
    verify_pairs_ = options.verify_pairs;
    coordinator_ = *Coordinator::Make(options);
    loss_percent_ = Draw(3) == 0 ? 0 : Draw(12);
    refuse_percent_ = Draw(2) == 0 ? 0 : Draw(30);
    death_percent_ = Draw(2) == 0 ? 0 : Draw(6);
    const std::uint32_t prefills = Draw(4);
    const std::uint32_t decodes = 1 + Draw(4);
    const std::uint32_t stores = Draw(2) == 0 ? 0 : Draw(4);
    for (std::uint32_t i = 0; i < prefills + decodes; ++i) {
      SimWorker& worker = workers_[absl::StrCat("w", i)];
      worker.name = absl::StrCat("w", i);
      worker.role = i < prefills ? Role::kPrefill : Role::kDecode;
      Begin(worker);
    }
    for (std::uint32_t i = 0; i < stores; ++i) {
      SimWorker& store = workers_[absl::StrCat("s", i)];
      store.name = absl::StrCat("s", i);
      store.role = Role::kStore;
      Begin(store);
    }
    for (int i = 0; i < kRequests; ++i) {
      const std::string id = absl::StrCat("r", i);
      const Duration at = std::chrono::milliseconds(500 + Draw(4000));
      After(at, [this, id] { SendRoute(id, 0); });
      if (Draw(10) == 0) {
        After(at + std::chrono::milliseconds(Draw(3000)),
              [this, id] { coordinator_->Cancel(id, now_); });
      }
      if (Draw(10) == 0) After(at + 20ms, [this, id] { SendRoute(id, 0); });
    }
  }

  void Run() {
    while (now_ < MonoTime() + 300s && !::testing::Test::HasFailure()) {
      const MonoTime due = coordinator_->NextDeadline();
      if (!events_.empty() && events_.top().at < due) {
        now_ = events_.top().at;
        const std::function<void()> what = events_.top().what;
        events_.pop();
        what();
      } else {
        ASSERT_LT(ticks_now_ = due > now_ ? 0 : ticks_now_ + 1, 1000) << "time stands still";
        now_ = std::max(now_, due);
        coordinator_->Tick(now_);
      }
      Deliver();
      const Coordinator::Stats stats = coordinator_->stats();
      ASSERT_LE(stats.requests, kRequestsMax);
      ASSERT_LE(stats.queued, stats.requests);
      quiet_ = now_ > MonoTime() + 100s;  // Nothing dies any more.
    }
    Check();
  }

  std::uint64_t log() const { return log_; }
  int finished() const { return finished_; }
  std::size_t fetched() const { return fetched_; }

 private:
  static constexpr Namespace kSpace = {{3}};
  static constexpr int kRequests = 40;
  static constexpr std::size_t kRequestsMax = 30;
  static constexpr std::size_t kQueuedMax = 12;

  struct Hold {
    MonoTime end;  // max() once adopted.
    bool granted = false;
  };
  struct SimWorker {
    std::string name;
    Role role = Role::kPrefill;
    std::uint64_t epoch = 0;
    bool alive = false;
    std::uint64_t grants = 0;
    std::uint64_t block_events = 0;
    std::map<Attempt, Hold> holds;
    WorkerRef ref() const { return {name, epoch}; }
  };
  struct Event {
    MonoTime at;
    std::uint64_t number;
    std::function<void()> what;
    bool operator<(const Event& o) const {
      return std::pair(o.at, o.number) < std::pair(at, number);
    }
  };
  struct Client {
    std::uint32_t attempt = 0;
    std::uint32_t tokens = 64;
    bool admitted = false;
    int ended = 0;
  };

  std::uint32_t Draw(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  bool Percent(std::uint32_t p) { return Draw(100) < p; }
  void After(Duration d, std::function<void()> what) {
    events_.push({now_ + d, event_number_++, std::move(what)});
  }
  // Over the network: late, out of order, twice, or never.
  void Send(const std::function<void()>& what) {
    if (!quiet_ && Percent(loss_percent_)) return;
    After(std::chrono::microseconds(100 + Draw(Percent(5) ? 400'000 : 3000)), what);
    if (Percent(5)) After(std::chrono::microseconds(100 + Draw(200'000)), what);
  }

  void Begin(SimWorker& worker) {
    worker.alive = true;
    ++worker.epoch;
    worker.holds.clear();
    worker.block_events = 0;
    TryRegister(worker.name, worker.epoch);
  }
  void TryRegister(const std::string& name, std::uint64_t epoch) {
    SimWorker& worker = workers_[name];
    if (!worker.alive || worker.epoch != epoch) return;
    Registration r;
    r.ref = worker.ref();
    r.role = worker.role;
    r.transfer_address = absl::StrCat("shm:host", Draw(3), ":", name);
    r.transfer_epoch = worker.epoch;
    if (worker.role != Role::kStore) {
      r.model = "m";
      r.identity = {{"weights", "w"}};
      r.block_tokens = 16;
      r.kv_bytes_per_token = 1000;
      r.blocks_total = 200;
      r.sequences_max = 4;
      if (name != "w1") r.groups = {{.copy_spaces = {kSpace}, .block_bytes = 16000}};
    }
    const absl::Status status = coordinator_->Register(r, now_);
    ASSERT_TRUE(status.ok()) << status;
    ReportSoon(name, epoch);
  }
  void ReportSoon(const std::string& name, std::uint64_t epoch) {
    After(std::chrono::milliseconds(200 + Draw(600)), [this, name, epoch] { Report(name, epoch); });
  }
  void Report(const std::string& name, std::uint64_t epoch) {
    SimWorker& worker = workers_[name];
    if (!worker.alive || worker.epoch != epoch) return;
    std::erase_if(worker.holds, [&](const auto& hold) { return hold.second.end <= now_; });
    std::vector<Attempt> live;
    for (const auto& [id, hold] : worker.holds) live.push_back(id);
    const WorkerRef ref = worker.ref();
    const auto sequences = static_cast<std::uint32_t>(live.size());
    Send([this, ref, live, sequences, name, epoch] {
      const LoadReport load = {.sequences = sequences, .blocks_used = sequences * 10};
      const absl::Status status = coordinator_->Report(ref, load, live, now_);
      // Its session ended for want of reports: a new life.
      SimWorker& w = workers_[name];
      if (!status.ok() && w.alive && w.epoch == epoch) Begin(w);
    });
    worker.role == Role::kStore ? SayCopies(worker) : SayBlocks(worker);
    if (!quiet_ && Percent(death_percent_)) {
      worker.alive = false;
      worker.holds.clear();
      After(std::chrono::milliseconds(100 + Draw(8000)), [this, name] { Begin(workers_[name]); });
      return;
    }
    if (!quiet_ && Percent(5)) coordinator_->Disconnected(ref, now_);
    if (!quiet_ && Percent(1)) coordinator_->Drain(ref, 1s, now_).IgnoreError();
    ReportSoon(name, epoch);
  }

  void SayBlocks(SimWorker& worker) {
    const std::uint64_t first = worker.block_events + 1;
    std::vector<BlockEvent> blocks(1 + Draw(3));
    for (BlockEvent& block : blocks) {
      block.chain.bytes[0] = static_cast<std::uint8_t>(Draw(4));
      if (Percent(20)) block.kind = BlockEvent::Kind::kRemoved;
    }
    worker.block_events += blocks.size();
    Send([this, ref = worker.ref(), first, blocks] {
      coordinator_->Blocks(ref, first, blocks, now_).IgnoreError();
    });
  }
  void SayCopies(SimWorker& store) {
    const std::uint64_t first = store.block_events + 1;
    std::vector<CopyEvent> copies(1 + Draw(6));
    for (std::size_t i = 0; i < copies.size(); ++i) {
      Chain chain;
      chain.bytes[0] = static_cast<std::uint8_t>(Percent(50) ? i : Draw(5));
      copies[i] = {.name = NameOf({kSpace, chain}),
                   .tier = static_cast<Tier>(2 + Draw(3)),
                   .bytes = Draw(20000)};
      if (i > 0) copies[i].parent = copies[i - 1].name;
      if (Percent(10)) copies[i].kind = CopyEvent::Kind::kRemoved;
    }
    store.block_events += copies.size();
    Send([this, ref = store.ref(), first, copies] {
      coordinator_->Copies(ref, first, copies, now_).IgnoreError();
    });
  }

  void Say(SimWorker& worker, const WorkerEvent& event) {
    const WorkerRef ref = worker.ref();
    Send([this, ref, event] {
      const absl::Status status = coordinator_->On(ref, event, now_);
      ASSERT_TRUE(status.ok() || status.code() == absl::StatusCode::kAborted) << status;
      if (status.ok() && (event.kind == Kind::kRefused || event.kind == Kind::kFinished)) {
        outstanding_[event.id.request_id].erase({event.id.number, ref.name, ref.epoch});
      }
    });
  }

  void OnReserve(const ReserveAction& a) {
    SimWorker& worker = workers_[a.worker.ref.name];
    if (!worker.alive || worker.epoch != a.worker.ref.epoch || Percent(2)) return;
    if (Percent(refuse_percent_)) {
      Say(worker,
          {.kind = Kind::kRefused, .id = a.id, .error = absl::ResourceExhaustedError("full")});
      return;
    }
    worker.holds.emplace(a.id, Hold{now_ + a.hold_for, true});
    Say(worker, {.kind = Kind::kGranted, .id = a.id, .grant = ++worker.grants});
  }
  void OnStart(const StartAction& a) {
    SimWorker& worker = workers_[a.worker.ref.name];
    if (!worker.alive || worker.epoch != a.worker.ref.epoch || Percent(2)) return;
    if (Percent(refuse_percent_)) {
      if (a.decode.ref.name == worker.name) worker.holds.erase(a.id);
      Say(worker, {.kind = Kind::kRefused, .id = a.id, .error = absl::UnavailableError("busy")});
      return;
    }
    worker.holds.emplace(a.id, Hold{now_ + a.hold_for});
    Say(worker, {.kind = Kind::kAccepted, .id = a.id});
    const WorkerRef prefill = worker.ref();
    After(std::chrono::milliseconds(10 + Draw(150)), [this, a, prefill] {
      SimWorker& w = workers_[prefill.name];
      if (!w.alive || w.epoch != prefill.epoch || !w.holds.contains(a.id)) return;
      if (Percent(refuse_percent_ / 4)) {
        Say(w, {.kind = Kind::kTransferFailed, .id = a.id, .error = absl::DataLossError("crc")});
        return;
      }
      Say(w, {.kind = Kind::kComputed, .id = a.id});
      After(std::chrono::milliseconds(1 + Draw(20)), [this, a] { Land(a); });
    });
  }
  void Land(const StartAction& a) {
    SimWorker& worker = workers_[a.decode.ref.name];
    if (!worker.alive || worker.epoch != a.decode.ref.epoch) return;
    const auto hold = worker.holds.find(a.id);
    if (hold == worker.holds.end() || !hold->second.granted || hold->second.end <= now_) return;
    if (a.grant > worker.grants) ADD_FAILURE() << "a grant that was never given";
    hold->second.end = MonoTime::max();
    Say(worker, {.kind = Kind::kAdopted, .id = a.id});
    const WorkerRef ref = worker.ref();
    After(std::chrono::milliseconds(20 + Draw(500)), [this, a, ref] {
      SimWorker& w = workers_[ref.name];
      if (!w.alive || w.epoch != ref.epoch || w.holds.erase(a.id) == 0) return;
      Say(w, {.kind = Kind::kFinished, .id = a.id});
    });
  }

  void SendRoute(const std::string& id, std::uint32_t lost_attempt) {
    Client& client = clients_[id];
    RouteQuery query;
    query.request = id;
    query.gateway = "g";
    query.model = "m";
    query.prompt_tokens = client.tokens;
    query.chains.resize(client.tokens / 16);
    for (std::size_t i = 0; i < query.chains.size(); ++i) {
      query.chains[i].bytes[0] = static_cast<std::uint8_t>(i);
    }
    query.output_tokens_max = 1 + Draw(100);
    query.priority = static_cast<std::int32_t>(Draw(3));
    query.lost_attempt = lost_attempt;
    const RouteAnswer answer = coordinator_->Route(std::move(query), now_);
    if (answer.status.ok()) {
      client.admitted = true;
      return;
    }
    const absl::StatusCode code = answer.status.code();
    if (code == absl::StatusCode::kFailedPrecondition) {
      EXPECT_EQ(client.ended, 1) << "ended, and we know it";
    } else {
      EXPECT_TRUE(code == absl::StatusCode::kResourceExhausted ||
                  code == absl::StatusCode::kUnavailable)
          << answer.status;
      EXPECT_GT(answer.retry_after, Duration());
    }
  }

  // What the coordinator wants done, and the promises that it makes by it.
  void Deliver() {
    for (Action& action : coordinator_->TakeActions()) {
      log_ = (log_ * 1099511628211u) ^ (action.index() + 1);
      if (const auto* reserve = std::get_if<ReserveAction>(&action)) {
        const ReserveAction a = *reserve;
        Log(a.id, a.worker);
        if (verify_pairs_ && a.prefill.ref.name != a.worker.ref.name) {
          EXPECT_TRUE(verified_.contains({a.prefill.ref.name, a.worker.ref.name}));
        }
        std::set<Holder>& others = outstanding_[a.id.request_id];
        EXPECT_TRUE(others.empty()) << "attempt " << a.id.number << " of " << a.id.request_id
                                    << " while another is with " << std::get<1>(*others.begin());
        others.emplace(a.id.number, a.worker.ref.name, a.worker.ref.epoch);
        Send([this, a] { OnReserve(a); });
      } else if (const auto* start = std::get_if<StartAction>(&action)) {
        const StartAction a = *start;
        Log(a.id, a.worker);
        EXPECT_LE(outstanding_[a.id.request_id].size(), 1u);
        EXPECT_GT(a.grant, 0u);
        fetched_ += a.sources.size();
        for (std::size_t i = 0; i < a.sources.size(); ++i) {
          EXPECT_LT(a.sources[i].first_block, a.sources[i].end_block);
          EXPECT_LE(a.sources[i].end_block, (a.prompt_tokens - 1) / 16);
          if (i > 0) {
            EXPECT_EQ(a.sources[i].first_block, a.sources[i - 1].end_block) << "a hole";
          }
          EXPECT_EQ(workers_[a.sources[i].store.ref.name].role, Role::kStore);
        }
        outstanding_[a.id.request_id].emplace(a.id.number, a.worker.ref.name, a.worker.ref.epoch);
        Send([this, a] { OnStart(a); });
      } else if (const auto* release = std::get_if<ReleaseAction>(&action)) {
        const ReleaseAction a = *release;
        Log(a.id, a.worker);
        outstanding_[a.id.request_id].erase({a.id.number, a.worker.ref.name, a.worker.ref.epoch});
        Send([this, a] {
          SimWorker& worker = workers_[a.worker.ref.name];
          if (worker.epoch == a.worker.ref.epoch) worker.holds.erase(a.id);
        });
      } else if (const auto* planned = std::get_if<PlannedAction>(&action)) {
        Client& client = clients_[planned->id.request_id];
        EXPECT_GE(planned->id.number, client.attempt) << "attempts only go up";
        client.attempt = planned->id.number;
      } else if (const auto* lost = std::get_if<LostAction>(&action)) {
        const Attempt id = lost->id;
        if (Percent(10)) continue;  // The gateway has died as well.
        After(std::chrono::milliseconds(1 + Draw(50)), [this, id] {
          clients_[id.request_id].tokens += 1 + Draw(20);
          SendRoute(id.request_id, id.number);
        });
      } else if (const auto* ended = std::get_if<EndedAction>(&action)) {
        EXPECT_TRUE(outstanding_[ended->request].empty()) << ended->request << " is still held";
        ++clients_[ended->request].ended;
        finished_ += ended->status.ok() ? 1 : 0;
      } else if (const auto* gone = std::get_if<SessionEndedAction>(&action)) {
        for (auto& [id, holders] : outstanding_) {
          std::erase_if(holders, [&](const Holder& h) {
            return std::get<1>(h) == gone->worker.ref.name &&
                   std::get<2>(h) == gone->worker.ref.epoch;
          });
        }
      } else if (const auto* preflight = std::get_if<PreflightAction>(&action)) {
        const PreflightAction a = *preflight;
        verified_.erase({a.prefill.ref.name, a.decode.ref.name});
        Send([this, a] {
          PairReport report;
          if (!Percent(refuse_percent_)) report.status = absl::OkStatus();
          const absl::Status status = coordinator_->Preflighted(
              a.prefill.ref, a.decode.ref.name, a.decode.transfer_epoch, report, now_);
          if (!status.ok()) return;
          if (report.status.ok()) {
            verified_.emplace(a.prefill.ref.name, a.decode.ref.name);
          } else {
            verified_.erase({a.prefill.ref.name, a.decode.ref.name});
          }
        });
      } else if (const auto* drained = std::get_if<DrainedAction>(&action)) {
        const Peer peer = drained->worker;
        After(10ms, [this, peer] {
          SimWorker& worker = workers_[peer.ref.name];
          if (!worker.alive || worker.epoch != peer.ref.epoch) return;
          coordinator_->Leave(peer.ref, now_).IgnoreError();
          Begin(worker);
        });
      }
    }
  }
  void Log(const Attempt& id, const Peer& peer) {
    for (const char c : absl::StrCat(id.request_id, "/", id.number, "@", peer.ref.name)) {
      log_ = (log_ ^ static_cast<std::uint8_t>(c)) * 1099511628211u;
    }
  }

  void Check() {
    const Coordinator::Stats stats = coordinator_->stats();
    EXPECT_EQ(stats.requests, 0u);
    EXPECT_EQ(stats.queued, 0u);
    EXPECT_EQ(stats.booked_prefills, 0u);
    EXPECT_EQ(stats.booked_sequences, 0u);
    EXPECT_EQ(stats.booked_blocks, 0u);
    EXPECT_EQ(stats.booked_bytes, 0u);
    EXPECT_EQ(stats.booked_fetch_bytes, 0u);
    for (const StoreView& store : coordinator_->Stores()) EXPECT_EQ(store.bytes_planned, 0u);
    for (const auto& [id, client] : clients_) {
      EXPECT_EQ(client.ended, client.admitted ? 1 : 0) << id;
    }
    for (const auto& [name, worker] : workers_) {
      for (const auto& [id, hold] : worker.holds) {
        ADD_FAILURE() << name << " still holds " << id.request_id << " attempt " << id.number;
      }
    }
    EXPECT_EQ(stats.admitted, stats.finished + stats.failed);
  }

  using Holder = std::tuple<std::uint32_t, std::string, std::uint64_t>;  // Attempt, worker, epoch.

  std::mt19937 random_;
  MonoTime now_{};
  std::unique_ptr<Coordinator> coordinator_;
  std::priority_queue<Event> events_;
  std::uint64_t event_number_ = 0;
  std::map<std::string, SimWorker> workers_;
  std::map<std::string, Client> clients_;
  std::map<std::string, std::set<Holder>> outstanding_;
  std::uint32_t loss_percent_ = 0;
  std::uint32_t refuse_percent_ = 0;
  std::uint32_t death_percent_ = 0;
  std::set<std::pair<std::string, std::string>> verified_;
  bool verify_pairs_ = false;
  bool quiet_ = false;
  int ticks_now_ = 0;
  int finished_ = 0;
  std::size_t fetched_ = 0;  // Sources told.
  std::uint64_t log_ = 0;
};

TEST(CoordinatorModelTest, EveryRequestEndsOnceAndNothingIsHeld) {
#if defined(PENSTOCK_SANITIZED)
  constexpr std::uint32_t kSeeds = 200;
#else
  constexpr std::uint32_t kSeeds = 2000;
#endif
  int finished = 0;
  std::size_t fetched = 0;
  for (std::uint32_t seed = 0; seed < kSeeds && !HasFailure(); ++seed) {
    const RunningSeed running(seed);
    Cluster cluster(seed);
    cluster.Run();
    finished += cluster.finished();
    fetched += cluster.fetched();
  }
  EXPECT_GT(finished, static_cast<int>(kSeeds) * 15) << "of 40 each";
  EXPECT_GT(fetched, kSeeds) << "a good part of them";
}

TEST(CoordinatorModelTest, TheSameEventsGiveTheSameActions) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    Cluster one(seed);
    Cluster two(seed);
    one.Run();
    two.Run();
    EXPECT_EQ(one.log(), two.log()) << "seed=" << seed;
  }
}

}  // namespace
}  // namespace penstock::coordinator
