// SPDX-License-Identifier: Apache-2.0
// How many requests a second one core can place, and how long the slow ones take.
//
// 500 prefill and 500 decode workers; a million blocks of 1 to 8 holders, and one that all hold.
// Every prompt has 1,024 blocks, of which a uniformly drawn number is known: the shared one, then
// the begin of one of a thousand documents. 2,000 requests are in flight. With stores: 50 nodes on
// as many hosts, ten workers of each role on each; every document is in two of them, in four parts.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <deque>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/coordinator.h"

namespace penstock::coordinator {
namespace {

constexpr std::uint32_t kBlockTokens = 32;
constexpr std::size_t kPromptBlocks = 1024;
constexpr std::size_t kDocuments = 1'000'000 / (kPromptBlocks - 1);
constexpr std::uint32_t kWorkersOfARole = 500;
constexpr std::size_t kInFlight = 2000;
constexpr std::size_t kStores = 50;

class Bench {
 public:
  Bench(const char* policy, bool with_stores) : random_(4711), with_stores_(with_stores) {
    Coordinator::Options options;
    options.policy.name = policy;
    options.members.ttl = std::chrono::hours(24);
    coordinator_ = *Coordinator::Make(options);
    shared_ = RandomChain();
    for (std::size_t i = 0; i < kDocuments; ++i) {
      documents_.emplace_back();
      for (std::size_t b = 1; b < kPromptBlocks; ++b) documents_.back().push_back(RandomChain());
    }
    AddWorkers();
    AddBlocks();
    if (with_stores_) AddStores();
    coordinator_->TakeActions();
  }

  RouteQuery Query() {
    const std::size_t known = random_() % (kPromptBlocks + 1);
    const std::vector<Chain>& document = documents_[random_() % documents_.size()];
    RouteQuery query;
    query.request = absl::StrCat("r", next_++);
    query.gateway = "g";
    query.model = "m";
    query.prompt_tokens = kPromptBlocks * kBlockTokens;
    query.output_tokens_max = 256;
    for (std::size_t b = 0; b < kPromptBlocks; ++b) {
      query.chains.push_back(b >= known ? RandomChain() : b == 0 ? shared_ : document[b - 1]);
    }
    return query;
  }

  // The decision alone: from the query to the actions. Seconds.
  double Decide(RouteQuery query) {
    now_ += std::chrono::microseconds(100);
    const MonoTime begin = SteadyClock().Now();
    const RouteAnswer answer = coordinator_->Route(std::move(query), now_);
    std::vector<Action> actions = coordinator_->TakeActions();
    const double seconds = ToSeconds(SteadyClock().Now() - begin);
    CHECK(answer.status.ok());
    CHECK(answer.state == RequestState::kReserving);
    for (const Action& action : actions) {
      if (const auto* reserve = std::get_if<ReserveAction>(&action)) flying_.push_back(*reserve);
    }
    return seconds;
  }

  // The oldest in flight takes the rest of its way: five events. Seconds.
  double Finish() {
    const ReserveAction plan = flying_.front();
    flying_.pop_front();
    const MonoTime begin = SteadyClock().Now();
    using Kind = WorkerEvent::Kind;
    for (const Kind kind :
         {Kind::kGranted, Kind::kAccepted, Kind::kComputed, Kind::kAdopted, Kind::kFinished}) {
      const bool prefill = kind == Kind::kAccepted || kind == Kind::kComputed;
      const WorkerRef& ref = prefill ? plan.prefill.ref : plan.worker.ref;
      CHECK(coordinator_->On(ref, {.kind = kind, .id = plan.id}, now_).ok());
    }
    coordinator_->TakeActions();
    return ToSeconds(SteadyClock().Now() - begin);
  }

  std::size_t in_flight() const { return flying_.size(); }

 private:
  Chain RandomChain() {
    Chain chain;
    for (std::size_t i = 0; i < 16; i += 8) {
      const std::uint64_t value = random_();
      std::memcpy(chain.bytes.data() + i, &value, sizeof(value));
    }
    return chain;
  }

  void AddWorkers() {
    for (std::uint32_t i = 0; i < 2 * kWorkersOfARole; ++i) {
      Registration r;
      r.ref = {absl::StrCat("w", i), 1};
      r.role = i < kWorkersOfARole ? Role::kPrefill : Role::kDecode;
      r.model = "m";
      r.block_tokens = kBlockTokens;
      r.kv_bytes_per_token = 100'000;
      r.blocks_total = 100'000;
      r.sequences_max = 64;
      r.prefill_tokens_per_s = 1e6;
      r.link_bytes_per_s = 1e12;
      if (with_stores_) {
        r.groups = {{.copy_spaces = {kSpace}, .block_bytes = 3'200'000}};
        r.transfer_address = absl::StrCat("shm:host", i % kStores, ":w", i);
      }
      CHECK(coordinator_->Register(r, now_).ok());
      CHECK(coordinator_->Report(r.ref, {}, {}, now_).ok());
      blocks_.emplace_back(1, BlockEvent{.chain = shared_});
    }
  }

  // One holder has the whole document, up to seven more have a part.
  void AddBlocks() {
    for (const std::vector<Chain>& document : documents_) {
      const std::size_t holders = 1 + random_() % 8;
      for (std::size_t i = 0; i < holders; ++i) {
        const std::size_t n = i == 0 ? document.size() : 1 + random_() % document.size();
        std::vector<BlockEvent>& events = blocks_[random_() % blocks_.size()];
        for (std::size_t b = 0; b < n; ++b) events.push_back(BlockEvent{.chain = document[b]});
      }
    }
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      CHECK(coordinator_->Blocks({absl::StrCat("w", i), 1}, 1, blocks_[i], now_).ok());
    }
    blocks_.clear();
  }

  void AddStores() {
    std::vector<std::vector<CopyEvent>> copies(kStores);
    for (const std::vector<Chain>& document : documents_) {
      const std::size_t first = random_();
      for (std::size_t b = 0; b < document.size(); ++b) {
        for (std::size_t i = 0; i < 2; ++i) {
          CopyEvent event = {.name = NameOf({kSpace, document[b]}), .codec = 1, .bytes = 3'200'000};
          if (b > 0) event.parent = NameOf({kSpace, document[b - 1]});
          copies[(first + 7 * i + b * 4 / document.size()) % kStores].push_back(event);
        }
      }
    }
    for (std::size_t i = 0; i < kStores; ++i) {
      copies[i].push_back({.name = NameOf({kSpace, shared_}), .codec = 1, .bytes = 3'200'000});
      Registration r;
      r.ref = {absl::StrCat("s", i), 1};
      r.role = Role::kStore;
      r.transfer_address = absl::StrCat("shm:host", i, ":s");
      CHECK(coordinator_->Register(r, now_).ok());
      CHECK(coordinator_->Report(r.ref, {}, {}, now_).ok());
      CHECK(coordinator_->Copies(r.ref, 1, copies[i], now_).ok());
    }
  }

  static constexpr Namespace kSpace = {{9}};
  std::mt19937_64 random_;
  const bool with_stores_;
  std::unique_ptr<Coordinator> coordinator_;
  MonoTime now_{};
  std::uint64_t next_ = 0;
  Chain shared_;
  std::vector<std::vector<Chain>> documents_;
  std::vector<std::vector<BlockEvent>> blocks_;
  std::deque<ReserveAction> flying_;
};

void Report(benchmark::State& state, const char* name, std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  double sum = 0;
  for (const double s : seconds) sum += s;
  const auto count = static_cast<double>(seconds.size());
  state.counters[absl::StrCat(name, "_per_s")] = count / sum;
  state.counters[absl::StrCat(name, "_p50_us")] = 1e6 * seconds[seconds.size() / 2];
  state.counters[absl::StrCat(name, "_p99_us")] = 1e6 * seconds[seconds.size() * 99 / 100];
  state.counters[absl::StrCat(name, "_max_us")] = 1e6 * seconds.back();
}

void Route(benchmark::State& state, const char* policy, bool with_stores) {
  Bench bench(policy, with_stores);
  while (bench.in_flight() < kInFlight) bench.Decide(bench.Query());
  std::vector<double> decisions;
  std::vector<double> lives;
  for (auto _ : state) {
    RouteQuery query = bench.Query();
    decisions.push_back(bench.Decide(std::move(query)));
    lives.push_back(bench.Finish());
    state.SetIterationTime(decisions.back());
  }
  Report(state, "decisions", std::move(decisions));
  Report(state, "rest_of_life", std::move(lives));
}
BENCHMARK_CAPTURE(Route, cost, "cost", false)->UseManualTime()->Iterations(30000);
BENCHMARK_CAPTURE(Route, cost_with_stores, "cost", true)->UseManualTime()->Iterations(30000);
BENCHMARK_CAPTURE(Route, least_loaded, "least-loaded", false)->UseManualTime()->Iterations(10000);
BENCHMARK_CAPTURE(Route, round_robin, "round-robin", false)->UseManualTime()->Iterations(10000);

// What the gateway does before: chains of a prompt of 32,768 tokens.
void Hash(benchmark::State& state) {
  std::vector<TokenId> tokens(kPromptBlocks * kBlockTokens);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<TokenId>(i * 7919);
  for (auto _ : state) benchmark::DoNotOptimize(ChainsOf(tokens, "tenant", kBlockTokens));
}
BENCHMARK(Hash)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace penstock::coordinator
