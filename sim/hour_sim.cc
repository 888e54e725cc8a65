// SPDX-License-Identifier: Apache-2.0
#include "sim/hour_sim.h"

#include <cstring>
#include <functional>
#include <memory>
#include <queue>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/coordinator.h"
#include "sim/hour_worker.h"

namespace penstock::sim {
namespace {

namespace co = coordinator;
using Kind = co::WorkerEvent::Kind;
using std::chrono::seconds;

constexpr int kTriesMax = 20;  // Of a client that is told to come again.

Chain ChainOf(std::uint64_t block) {
  Chain chain;
  const std::uint64_t words[] = {block * 0x9e3779b97f4a7c15u, block};
  std::memcpy(chain.bytes.data(), words, sizeof(words));
  return chain;
}

class Hour {
 public:
  Hour(const std::vector<TraceRequest>& trace, const HourOptions& options,
       std::unique_ptr<co::Coordinator> machine)
      : trace_(trace), options_(options), machine_(std::move(machine)) {}

  HourResult Run() {
    for (int i = 0; i < options_.prefills; ++i) Join(absl::StrCat("p", i), co::Role::kPrefill);
    for (int i = 0; i < options_.decodes; ++i) Join(absl::StrCat("d", i), co::Role::kDecode);
    jobs_.resize(trace_.size());
    left_ = trace_.size();
    if (left_ > 0) At(begin_ + trace_[0].at, [this] { Arrive(0); });
    while (left_ > 0) {
      const MonoTime due = machine_->NextDeadline();
      if (due <= events_.top().at) {
        now_ = std::max(now_, due);
        machine_->Tick(now_);
      } else {
        now_ = events_.top().at;
        const std::function<void()> task = events_.top().task;
        events_.pop();
        ++result_.events;
        task();
      }
      Deliver();
    }
    return Finish();
  }

 private:
  struct Event {
    MonoTime at;
    std::uint64_t number;
    std::function<void()> task;
    bool operator<(const Event& o) const {
      return std::pair(o.at, o.number) < std::pair(at, number);
    }
  };
  struct Job {
    std::vector<Chain> chains;
    int tries = 0;
    bool first_token = false;
  };

  void At(MonoTime when, std::function<void()> task) {
    events_.push({when, next_event_++, std::move(task)});
  }
  void Send(std::function<void()> task) { At(now_ + options_.message_delay, std::move(task)); }

  // ---- Workers.

  void Join(const std::string& name, co::Role role) {
    HourWorker& worker = workers_[name];
    worker.ref = {name, 1};
    worker.role = role;
    co::Registration r;
    r.ref = worker.ref;
    r.role = role;
    r.model = "m";
    r.block_tokens = kTraceBlockTokens;
    r.endpoint = name;
    r.context_tokens = 1 << 24;
    r.kv_bytes_per_token = options_.kv_bytes_per_token;
    r.blocks_total = options_.blocks;
    r.sequences_max = options_.sequences_max;
    r.prefill_tokens_per_s = options_.prefill_tokens_per_s;
    r.link_bytes_per_s = options_.link_bytes_per_s;
    r.step_seconds = StepSeconds(options_.sequences_max);
    machine_->Register(r, now_).IgnoreError();
    // Not all at the same moment.
    At(now_ + FromSeconds(static_cast<double>(workers_.size() % 100) / 100),
       [this, &worker] { Report(worker); });
  }
  void Report(HourWorker& worker) {
    co::LoadReport load;
    load.sequences = static_cast<std::uint32_t>(worker.held.size());
    load.blocks_used = worker.blocks_held;
    std::vector<Attempt> live;
    for (const auto& [attempt, blocks] : worker.held) live.push_back(attempt);
    machine_->Report(worker.ref, load, live, now_).IgnoreError();
    At(now_ + seconds(1), [this, &worker] { Report(worker); });
  }
  void Say(const HourWorker& worker, co::WorkerEvent event) {
    Send([this, ref = worker.ref, event = std::move(event)] {
      machine_->On(ref, event, now_).IgnoreError();
    });
  }
  void Store(HourWorker& worker, const std::vector<Chain>& chains) {
    const std::vector<BlockEvent> events =
        worker.cache.Add(chains, options_.blocks - std::min(options_.blocks, worker.blocks_held));
    if (events.empty()) return;
    machine_->Blocks(worker.ref, worker.block_events + 1, events, now_).IgnoreError();
    worker.block_events += events.size();
  }

  void OnReserve(const co::ReserveAction& a) {
    HourWorker& worker = workers_[a.worker.ref.name];
    const TraceRequest& request = trace_[IndexOf(a.id)];
    const std::uint64_t blocks =
        (request.input_tokens + request.output_tokens + kTraceBlockTokens - 1) / kTraceBlockTokens;
    if (worker.blocks_held + blocks > options_.blocks) {
      return Say(
          worker,
          {.kind = Kind::kRefused, .id = a.id, .error = absl::ResourceExhaustedError("no room")});
    }
    worker.held[a.id] = blocks;
    worker.blocks_held += blocks;
    Say(worker, {.kind = Kind::kGranted,
                 .id = a.id,
                 .grant = ++worker.grants,
                 .decode_reused_tokens = worker.cache.Usable(*a.chains) * kTraceBlockTokens});
  }
  void OnStart(const co::StartAction& a) {
    HourWorker& worker = workers_[a.worker.ref.name];
    const bool local = a.decode.ref.name == a.worker.ref.name;
    Say(worker, {.kind = Kind::kAccepted, .id = a.id});
    const MonoTime begin = std::max(now_, worker.busy_until);
    // What is cached counts when its turn comes: prompts before it may have brought more.
    worker.busy_until = begin;
    At(begin, [this, a, local, &worker] { Compute(worker, a, local); });
    // Until then it is counted with what it would take now; Compute says what it takes.
    worker.busy_until += Cost(worker, a);
  }
  Duration Cost(const HourWorker& worker, const co::StartAction& a) const {
    const std::uint32_t reused =
        std::min(worker.cache.Usable(*a.chains) * kTraceBlockTokens, a.prompt_tokens - 1);
    return FromSeconds((a.prompt_tokens - 1 - reused) / options_.prefill_tokens_per_s);
  }
  void Compute(HourWorker& worker, const co::StartAction& a, bool local) {
    const std::uint32_t reused =
        std::min(worker.cache.Usable(*a.chains) * kTraceBlockTokens, a.prompt_tokens - 1);
    const Duration cost = Cost(worker, a);
    if (!local) worker.tokens += a.prompt_tokens - 1 - reused;
    result_.reused_tokens += reused;
    result_.prompt_tokens += a.prompt_tokens;
    result_.local += local ? 1 : 0;
    const double moved =
        local ? 0
              : static_cast<double>(a.prompt_tokens -
                                    std::min(a.decode_reused_tokens, a.prompt_tokens)) *
                    static_cast<double>(options_.kv_bytes_per_token) / options_.link_bytes_per_s;
    const Duration landed =
        std::max(cost + FromSeconds(moved / options_.layers), FromSeconds(moved));
    At(now_ + cost, [this, a, &worker, local] {
      if (!local) Say(worker, {.kind = Kind::kComputed, .id = a.id});
      Store(worker, *a.chains);
    });
    At(now_ + landed, [this, a] { Adopt(a); });
  }

  // ---- Decode.

  double StepSeconds(std::size_t sequences) const {
    return options_.step_seconds + options_.step_seconds_per_other *
                                       static_cast<double>(std::max<std::size_t>(sequences, 1) - 1);
  }
  void CountSteps(HourWorker& worker) {
    worker.steps += ToSeconds(now_ - worker.steps_at) / StepSeconds(worker.running.size());
    worker.steps_at = now_;
  }
  void Adopt(const co::StartAction& a) {
    HourWorker& worker = workers_[a.decode.ref.name];
    if (!worker.held.contains(a.id)) return;  // Released meanwhile.
    const std::size_t index = IndexOf(a.id);
    CountSteps(worker);
    worker.running.emplace(worker.steps + trace_[index].output_tokens,
                           std::pair(a.id, jobs_[index].chains));
    Say(worker, {.kind = Kind::kAdopted, .id = a.id});
    if (!std::exchange(jobs_[index].first_token, true)) {
      result_.ttft_seconds.push_back(ToSeconds(now_ - begin_ - trace_[index].at) +
                                     StepSeconds(worker.running.size()));
    }
    AwaitEnd(worker);
  }
  void AwaitEnd(HourWorker& worker) {
    const std::uint64_t timer = ++worker.timer;
    if (worker.running.empty()) return;
    const double steps = std::max(0.0, worker.running.begin()->first - worker.steps);
    At(now_ + FromSeconds(steps * StepSeconds(worker.running.size())), [this, timer, &worker] {
      if (timer == worker.timer) EndFirst(worker);
    });
  }
  void EndFirst(HourWorker& worker) {
    CountSteps(worker);
    const auto [id, chains] = worker.running.begin()->second;
    worker.running.erase(worker.running.begin());
    worker.tokens += trace_[IndexOf(id)].output_tokens;
    LetGo(worker, id);
    Store(worker, chains);
    Say(worker, {.kind = Kind::kFinished, .id = id});
    AwaitEnd(worker);
  }
  void LetGo(HourWorker& worker, const Attempt& id) {
    const auto held = worker.held.find(id);
    if (held == worker.held.end()) return;
    worker.blocks_held -= held->second;
    worker.held.erase(held);
  }
  void OnRelease(const co::ReleaseAction& a) {
    HourWorker& worker = workers_[a.worker.ref.name];
    if (!worker.held.contains(a.id)) return;
    CountSteps(worker);
    LetGo(worker, a.id);
    std::erase_if(worker.running, [&](const auto& r) { return r.second.first == a.id; });
    AwaitEnd(worker);
  }

  // ---- Requests.

  static std::size_t IndexOf(const Attempt& id) { return std::stoul(id.request_id); }

  void Arrive(std::size_t i) {
    if (i + 1 < trace_.size()) At(begin_ + trace_[i + 1].at, [this, i] { Arrive(i + 1); });
    const TraceRequest& request = trace_[i];
    const std::size_t full =
        std::min<std::size_t>(request.blocks.size(), request.input_tokens / kTraceBlockTokens);
    for (std::size_t b = 0; b < full; ++b) jobs_[i].chains.push_back(ChainOf(request.blocks[b]));
    Send([this, i] { Route(i); });
  }
  void Route(std::size_t i) {
    co::RouteQuery query;
    query.request = std::to_string(i);
    query.gateway = "g";
    query.model = "m";
    query.prompt_tokens = trace_[i].input_tokens;
    query.output_tokens_max = trace_[i].output_tokens;
    query.chains = jobs_[i].chains;
    const co::RouteAnswer answer = machine_->Route(std::move(query), now_);
    if (answer.status.ok()) return;
    if (++jobs_[i].tries >= kTriesMax || answer.retry_after <= Duration()) {
      ++result_.refused;
      --left_;
      return;
    }
    At(now_ + answer.retry_after, [this, i] { Route(i); });
  }
  void Deliver() {
    for (co::Action& action : machine_->TakeActions()) {
      if (auto* reserve = std::get_if<co::ReserveAction>(&action)) {
        Send([this, a = std::move(*reserve)] { OnReserve(a); });
      } else if (auto* start = std::get_if<co::StartAction>(&action)) {
        Send([this, a = std::move(*start)] { OnStart(a); });
      } else if (auto* release = std::get_if<co::ReleaseAction>(&action)) {
        Send([this, a = std::move(*release)] { OnRelease(a); });
      } else if (const auto* ended = std::get_if<co::EndedAction>(&action)) {
        result_.answered += ended->status.ok() ? 1 : 0;
        --left_;
      }
    }
  }

  HourResult Finish() {
    result_.requests = trace_.size();
    result_.decisions = machine_->stats().plans;
    result_.simulated_seconds = ToSeconds(now_ - begin_);
    for (const auto& [name, worker] : workers_) {
      (worker.role == co::Role::kPrefill ? result_.prefill_tokens : result_.decode_tokens)
          .push_back(worker.tokens);
    }
    for (auto* tokens : {&result_.prefill_tokens, &result_.decode_tokens}) {
      std::ranges::sort(*tokens);
    }
    std::ranges::sort(result_.ttft_seconds);
    return std::move(result_);
  }

  const std::vector<TraceRequest>& trace_;
  const HourOptions options_;
  const std::unique_ptr<co::Coordinator> machine_;
  MonoTime now_ = MonoTime(seconds(1000));
  const MonoTime begin_ = now_ + seconds(2);  // By then all have reported.
  std::priority_queue<Event> events_;
  std::uint64_t next_event_ = 0;
  std::map<std::string, HourWorker> workers_;
  std::vector<Job> jobs_;
  std::size_t left_ = 0;
  HourResult result_;
};

}  // namespace

absl::StatusOr<HourResult> RunHour(const std::vector<TraceRequest>& trace,
                                   const HourOptions& options) {
  RETURN_IF_ERROR(CheckRange("decodes", options.decodes, 1, 4096));
  RETURN_IF_ERROR(CheckRange("prefills", options.prefills, 0, 4096));
  co::Coordinator::Options machine_options;
  machine_options.policy.name = options.policy;
  machine_options.policy.layers = options.layers;
  ASSIGN_OR_RETURN(std::unique_ptr<co::Coordinator> machine,
                   co::Coordinator::Make(machine_options));
  return Hour(trace, options, std::move(machine)).Run();
}

}  // namespace penstock::sim
