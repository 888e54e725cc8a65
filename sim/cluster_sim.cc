// SPDX-License-Identifier: Apache-2.0
#include "sim/cluster_sim.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "gtest/gtest.h"
#include "sim/sim_coordinator.h"
#include "sim/sim_gateway.h"
#include "sim/sim_model.h"
#include "sim/sim_store.h"
#include "sim/sim_worker.h"
#include "transfer/inproc_link.h"

namespace penstock::sim {

namespace co = coordinator;

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kRequests = 50;
constexpr Duration kRestStep = milliseconds(10);

// How soon after the last request and the last fault nobody holds anything, by design.
Duration RestWithin(const ClusterFaults& faults, const co::Coordinator::Options& machine) {
  // What a damaged message made a decode worker expect is given up by then (handoff_receiver.cc).
  if (faults.link.corrupt_message > 0) return seconds(10) + seconds(1);
  const bool lost = faults.break_stream + faults.kill_worker + faults.kill_coordinator +
                        faults.kill_gateway + faults.stop_process >
                    0;
  // A release that was lost: what was to be released ends with its hold. A first token is predicted
  // within 250 ms here.
  if (lost) {
    return machine.reserve_timeout + machine.start_timeout + machine.prefill_grace +
           4 * milliseconds(250);
  }
  // A few messages; those that were slow while there were faults, one on the way to the coordinator
  // and one on the way from it, hold up the next.
  const Duration slow = faults.slow_messages > 0 ? 2 * NetworkFaults().slow_max : Duration();
  return slow + milliseconds(100);
}

// A client: knows the answer, and compares.
class Client final : public gateway::Sink {
 public:
  Client(const Ask& ask, VirtualLoop& clock, bool slow) : ask_(ask), clock_(clock), slow_(slow) {
    got_.resize(static_cast<std::size_t>(ask.answers));
    finished_.resize(static_cast<std::size_t>(ask.answers));
  }
  bool OnEvent(gateway::Event event) override {
    EXPECT_FALSE(ended()) << ask_.id << ": an event after the end";
    if (const auto* delta = std::get_if<gateway::Delta>(&event)) {
      OnDelta(*delta);
    } else if (const auto* finished = std::get_if<gateway::Finished>(&event)) {
      const auto choice = static_cast<std::size_t>(finished->choice);
      EXPECT_FALSE(finished_.at(choice)) << ask_.id << ": answer " << choice << " finished twice";
      finished_[choice] = true;
      const bool eos = !ask_.ignore_eos && IsEos(ask_.right[choice].back());
      EXPECT_EQ(finished->reason == gateway::FinishReason::kStop, eos) << ask_.id;
    } else if (const auto* usage = std::get_if<gateway::Usage>(&event)) {
      attempts_ = usage->attempts;
    }
    return !slow_ || clock_.Now().time_since_epoch().count() % 8 != 0;
  }
  void OnEnd(const absl::Status& status, Duration) override {
    EXPECT_FALSE(ended()) << ask_.id << ": ended twice";
    status_ = status;
    ended_at_ = clock_.Now();
    if (!status.ok()) return;
    for (std::size_t i = 0; i < got_.size(); ++i) {
      EXPECT_EQ(got_[i], ask_.right[i]) << ask_.id << ": OK, but answer " << i << " is not whole";
      EXPECT_TRUE(finished_[i]) << ask_.id;
    }
  }
  // Its gateway died.
  void Break() {
    if (!ended()) status_ = absl::UnavailableError("the gateway is gone");
  }

  bool ended() const { return status_.has_value(); }
  const absl::Status& status() const { return *status_; }
  std::uint32_t attempts() const { return attempts_; }
  std::uint64_t Hash() const {
    std::uint64_t hash = static_cast<std::uint64_t>(ended_at_.time_since_epoch().count());
    for (const auto& tokens : got_) hash = Mix(hash + tokens.size());
    return Mix(hash + static_cast<std::uint64_t>(status_->code()));
  }

 private:
  void OnDelta(const gateway::Delta& delta) {
    const auto choice = static_cast<std::size_t>(delta.choice);
    std::vector<TokenId>& got = got_.at(choice);
    const std::vector<TokenId>& right = ask_.right[choice];
    for (const gateway::SampledToken& token : delta.tokens) {
      got.push_back(token.token);
      ASSERT_LE(got.size(), right.size()) << ask_.id << ": more than the answer has";
      ASSERT_EQ(got.back(), right[got.size() - 1])
          << ask_.id << ": token " << got.size() - 1 << " of answer " << choice;
    }
  }

  const Ask& ask_;
  VirtualLoop& clock_;
  const bool slow_;
  std::vector<std::vector<TokenId>> got_;
  std::vector<bool> finished_;
  std::optional<absl::Status> status_;
  MonoTime ended_at_{};
  std::uint32_t attempts_ = 1;
};

class Cluster {
 public:
  Cluster(std::uint32_t seed, const ClusterFaults& faults,
          const std::function<void(const std::string&)>& log)
      : random_(seed), faults_(faults), log_(log), network_(clock_, random_) {
    world_.link_faults = faults.link;
    world_.refuse = faults.refuse;
    world_.dial = [this](transfer::SegmentTable& from, const std::string& to, std::uint64_t epoch) {
      return Dial(from, to, epoch);
    };
    world_.store = [this](const std::string& name, std::uint64_t epoch) -> SimStore* {
      const auto found = workers_.find(name);
      auto* const store =
          found == workers_.end() ? nullptr : dynamic_cast<SimStore*>(found->second.get());
      const bool there = store != nullptr && store->epoch() == epoch && !store->process().stopped();
      return there ? store : nullptr;
    };
    network_.set_faults({.slow = faults.slow_messages});
    const char* const policies[] = {"cost", "cost", "least-loaded", "round-robin"};
    options_.machine.policy.name = policies[random_() % 4];
    options_.machine.members.ttl = seconds(3);
    options_.machine.verify_pairs = random_() % 2 == 0;
    options_.machine.prefill_grace = seconds(2);
    options_.machine.resume_timeout = seconds(3);
    // In half of the runs what was fetched twice gets another holder.
    if (seed % 2 == 0) {
      options_.machine.replication = {.hot_share = 0, .cold_share = 1, .fetches_min = 2};
    }
    coordinator_ = std::make_unique<SimCoordinator>(clock_, network_, options_);
    const std::size_t workers = 4 + random_() % 9;
    const std::size_t prefills = 1 + random_() % (workers - 2);
    for (std::size_t i = 0; i < workers; ++i) {
      const std::string name = absl::StrCat(i < prefills ? "p" : "d", i);
      workers_[name] = NewWorker(name);
    }
    // Of their own chance: runs without stores stay what they were.
    std::mt19937 stores(seed);
    for (std::size_t i = stores() % 2 == 0 ? 0 : 1 + stores() % 3; i > 0; --i) {
      const std::string name = absl::StrCat("s", i);
      workers_[name] = NewWorker(name);
    }
    for (std::size_t i = 0; i < 1 + random_() % 3; ++i) {
      const std::string name = absl::StrCat("g", i);
      gateways_[name] = std::make_unique<SimGateway>(clock_, network_, random_, name);
    }
  }

  ClusterResult Run() {
    clock_.Advance(seconds(1));  // All have joined.
    for (int i = 0; i < kRequests && !testing::Test::HasFatalFailure(); ++i) {
      clock_.Advance(std::chrono::microseconds(random_() % 100'000));
      Hurt();
      Submit(i);
    }
    EndFaults();
    if (random_() % 2 == 0) HangUp();
    for (const MonoTime end = clock_.Now() + seconds(60);
         clock_.Now() < end && (!AllEnded() || clock_.Now() < continues_);) {
      clock_.Advance(kRestStep);
    }
    const MonoTime quiet = clock_.Now();
    Log("all is quiet");
    std::vector<std::string> held = Held();
    while (clock_.Now() < quiet + seconds(60) && !held.empty()) {
      clock_.Advance(kRestStep);
      std::vector<std::string> now = Held();
      if (now == held) continue;
      for (const std::string& what : held) Log("was held: ", what);
      held = std::move(now);
    }
    const Duration rest = clock_.Now() - quiet;
    Log("at rest");
    ClusterResult result = Check();
    result.rest = rest;
    EXPECT_LE(ToSeconds(rest), ToSeconds(RestWithin(faults_, options_.machine)));
    return result;
  }

 private:
  template <typename... Args>
  void Log(const Args&... args) {
    if (log_ == nullptr) return;
    log_(absl::StrFormat("%10.6f  %s", ToSeconds(clock_.Now().time_since_epoch()) - 3600,
                         absl::StrCat(args...)));
  }
  bool Chance(double p) { return std::uniform_real_distribution<>()(random_) < p; }
  template <typename Map>
  auto& AnyOf(Map& map) {
    return *std::next(map.begin(), static_cast<std::ptrdiff_t>(random_() % map.size()));
  }

  std::unique_ptr<SimWorker> NewWorker(const std::string& name) {
    if (name[0] == 'p') return std::make_unique<SimPrefill>(world_, name);
    if (name[0] == 's') return std::make_unique<SimStore>(world_, name);
    return std::make_unique<SimDecode>(world_, name);
  }

  std::unique_ptr<transfer::Link> Dial(transfer::SegmentTable& from, const std::string& to,
                                       std::uint64_t epoch) {
    const auto found = workers_.find(to);
    auto* const decode =
        found == workers_.end() ? nullptr : dynamic_cast<SimDecode*>(found->second.get());
    if (decode == nullptr || decode->epoch() != epoch) return nullptr;
    auto [near, far] = transfer::MakeInprocLinks(clock_, from, decode->segments());
    const auto hurt = [&](std::unique_ptr<transfer::Link> link) {
      transfer::FaultPlan plan = world_.link_faults;
      plan.seed = random_();
      return transfer::MakeFaultLink(clock_, std::move(link), plan);
    };
    decode->Accept(hurt(std::move(far)));
    return hurt(std::move(near));
  }

  // What is stopped goes on, and all that was begun must end.
  void EndFaults() {
    network_.set_faults({});
    world_.refuse = 0;
    world_.link_faults = {};
  }

  // ---- Faults. Each in a task of its own, outside of all processes.

  void Hurt() {
    if (Chance(faults_.break_stream)) {
      Log("a stream breaks");
      network_.BreakOne();
    }
    if (Chance(faults_.stop_process)) StopOne();
    if (Chance(faults_.drain_worker)) {
      const std::string& name = AnyOf(workers_).first;
      Log(name, " is to drain");
      coordinator_->Drain(name, milliseconds(random_() % 2000));
    }
    for (auto& [name, worker] : workers_) {
      if (worker->left()) KillWorker(name);
    }
    if (Chance(faults_.kill_worker)) KillWorker(AnyOf(workers_).first);
    if (Chance(faults_.kill_gateway)) KillGateway(AnyOf(gateways_).first);
    if (Chance(faults_.kill_coordinator)) KillCoordinator();
  }
  void KillWorker(const std::string& name) {
    Log(name, " dies");
    workers_[name] = nullptr;
    workers_[name] = NewWorker(name);
  }
  void KillGateway(const std::string& name) {
    Log(name, " dies");
    gateways_[name] = nullptr;
    for (auto& [id, client] : clients_) {
      if (gateway_of_[id] == name) client->Break();
    }
    gateways_[name] = std::make_unique<SimGateway>(clock_, network_, random_, name);
  }
  void KillCoordinator() {
    Log("the coordinator dies");
    coordinator_ = nullptr;
    clock_.Advance(milliseconds(random_() % 3000));  // Nobody is hurt meanwhile.
    coordinator_ = std::make_unique<SimCoordinator>(clock_, network_, options_);
  }
  void StopOne() {
    std::vector<Process*> all;
    for (const auto& [name, worker] : workers_) all.push_back(&worker->process());
    for (const auto& [name, gateway] : gateways_) all.push_back(&gateway->process());
    if (random_() % 4 == 0) all.push_back(&coordinator_->process());
    Process* const victim = all[random_() % all.size()];
    if (victim->stopped()) return;
    Log(victim->name(), " stops");
    victim->Stop();
    const MonoTime continues = clock_.Now() + milliseconds(random_() % 3000);
    continues_ = std::max(continues_, continues);
    clock_.At(continues, victim->life().Guard([this, victim] {
      Log(victim->name(), " goes on");
      victim->Continue();
    }));
  }

  // ---- Clients.

  void Submit(int number) {
    Ask ask;
    ask.id = absl::StrCat("r", number);
    // Prompts share the begin of one of three documents.
    const std::size_t shared = random_() % 24;
    const std::uint32_t document = random_() % 3;
    for (std::size_t i = 0; i < shared; ++i) {
      ask.prompt.push_back(static_cast<TokenId>((document * 37 + i * 11) % 256));
    }
    for (std::size_t i = 1 + random_() % 16; i > 0; --i) {
      ask.prompt.push_back(static_cast<TokenId>(random_() % 256));
    }
    ask.answers = random_() % 4 == 0 ? 1 + static_cast<std::int32_t>(random_() % 3) : 1;
    ask.max_tokens = 1 + static_cast<std::int32_t>(random_() % 8);
    ask.ignore_eos = random_() % 2 == 0;
    ask.seed = random_();
    gateway::Prepared request;
    request.id = ask.id;
    request.model = SimModel();
    request.prompt = ask.prompt;
    request.root = RootChain("", kBlockTokens);
    request.chains = ChainsFrom(request.root, ask.prompt, kBlockTokens);
    request.block_tokens = kBlockTokens;
    request.sampling.seed = ask.seed;
    request.n = ask.answers;
    request.max_tokens = ask.max_tokens;
    request.ignore_eos = ask.ignore_eos;
    request.priority = static_cast<std::int32_t>(random_() % 3);
    request.tokens_only = true;
    request.arrived = clock_.Now();
    request.deadline =
        clock_.Now() + (random_() % 10 == 0 ? milliseconds(random_() % 300) : seconds(20));
    const auto& [name, gateway] = AnyOf(gateways_);
    Log(ask.id, " at ", name, ": ", ask.prompt.size(), " tokens, ", ask.answers, " answers of ",
        ask.max_tokens);
    const std::string id = ask.id;
    auto& client = clients_[id];
    client =
        std::make_unique<Client>(oracle_.Add(std::move(ask)), clock_, Chance(faults_.slow_reader));
    gateway_of_[id] = name;
    gateway->Submit(std::move(request), *client);
    if (!Chance(faults_.client_leaves)) return;
    clock_.At(clock_.Now() + std::chrono::microseconds(random_() % 200'000), [this, id] {
      Log("the client of ", id, " leaves");
      gateways_[gateway_of_[id]]->Leave(id);
    });
  }

  // All at once, so that much is let go in the same moment, whatever its state.
  void HangUp() {
    for (const auto& [id, client] : clients_) {
      if (!client->ended()) gateways_[gateway_of_[id]]->Leave(id);
    }
    Log("all clients leave");
  }

  // ---- What must hold.

  std::vector<std::string> Held() {
    std::vector<std::string> held;
    for (const auto& [name, worker] : workers_) {
      if (const std::string what = worker->Held(); !what.empty()) held.push_back(what);
    }
    for (const auto& [name, gateway] : gateways_) {
      if (gateway->requests() + gateway->calls() > 0) {
        held.push_back(absl::StrCat(name, ": ", gateway->requests(), " requests, ",
                                    gateway->calls(), " calls"));
      }
    }
    const coordinator::Coordinator::Stats s = coordinator_->machine().stats();
    if (s.requests + s.queued + s.booked_prefills + s.booked_sequences + s.booked_blocks +
            s.booked_bytes + s.booked_fetch_bytes >
        0) {
      held.push_back(absl::StrCat(
          "coordinator: ", s.requests, " requests, ", s.queued, " queued, booked ",
          s.booked_prefills, " prefills, ", s.booked_sequences, " sequences, ", s.booked_blocks,
          " blocks, ", s.booked_bytes, " bytes, ", s.booked_fetch_bytes, " bytes to fetch"));
    }
    return held;
  }
  bool AllEnded() const {
    return std::ranges::all_of(clients_, [](const auto& c) { return c.second->ended(); });
  }
  ClusterResult Check() {
    for (const std::string& what : Held()) ADD_FAILURE() << "held at rest: " << what;
    ClusterResult result;
    result.fetches = world_.fetches;
    for (const auto& [id, client] : clients_) {
      ++result.requests;
      if (!client->ended()) {
        ADD_FAILURE() << id << " never ended";
        continue;
      }
      result.hash = Mix(result.hash ^ client->Hash());
      Log(id, ": ", client->status().ToString());
      if (client->status().ok()) {
        ++result.answered;
        result.resumed += client->attempts() > 1 ? 1 : 0;
        continue;
      }
      using Code = absl::StatusCode;
      const Code code = client->status().code();
      EXPECT_TRUE(code == Code::kUnavailable || code == Code::kResourceExhausted ||
                  code == Code::kCancelled || code == Code::kDeadlineExceeded)
          << id << " ended with " << client->status();
    }
    return result;
  }

  std::mt19937 random_;
  const ClusterFaults faults_;
  const std::function<void(const std::string&)>& log_;
  std::vector<std::unique_ptr<transfer::SegmentTable>> tables_;
  VirtualLoop clock_;  // What waits in it may still have links.
  Network network_;
  Oracle oracle_;
  World world_{clock_, random_, network_, oracle_, tables_};
  SimCoordinator::Options options_;
  std::map<std::string, std::unique_ptr<Client>> clients_;
  std::map<std::string, std::string> gateway_of_;
  MonoTime continues_{};  // The last of the stopped processes.
  std::unique_ptr<SimCoordinator> coordinator_;
  std::map<std::string, std::unique_ptr<SimWorker>> workers_;
  std::map<std::string, std::unique_ptr<SimGateway>> gateways_;
};

}  // namespace

ClusterFaults FaultsOf(std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto some = [&](double most) {
    return random() % 2 == 0 ? 0 : most * static_cast<double>(random() % 100) / 100;
  };
  ClusterFaults faults;
  if (seed % 8 == 0) return faults;
  faults.link.drop_message = some(0.1);
  faults.link.delay_message = some(0.5);
  faults.link.duplicate_message = some(0.3);
  faults.link.corrupt_message = some(0.03);
  faults.link.delay_read = some(0.5);
  faults.link.corrupt_read = some(0.2);
  faults.link.disconnect = some(0.03);
  faults.refuse = some(0.2);
  faults.slow_messages = some(0.1);
  faults.break_stream = some(0.4);
  faults.kill_worker = some(0.1);
  faults.kill_coordinator = some(0.04);
  faults.kill_gateway = some(0.04);
  faults.stop_process = some(0.1);
  faults.drain_worker = some(0.03);
  faults.client_leaves = some(0.2);
  faults.slow_reader = some(0.1);
  return faults;
}

ClusterResult RunCluster(std::uint32_t seed, const ClusterFaults& faults,
                         const std::function<void(const std::string&)>& log) {
  return Cluster(seed, faults, log).Run();
}

}  // namespace penstock::sim
