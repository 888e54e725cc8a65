// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_worker.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "sim/sim_store.h"

namespace penstock::sim {

namespace co = coordinator;
using Kind = co::WorkerEvent::Kind;

namespace {

constexpr std::int32_t kSlabs = 60;  // Of a worker's pool, for each group.
constexpr std::uint32_t kSequencesMax = 6;
constexpr std::size_t kStoredMax = 64;

}  // namespace

SimWorker::SimWorker(World& world, const std::string& name)
    : world_(world),
      epoch_(++world.epochs),
      process_(world.clock, name),
      segments_(world.NewTable()),
      memory_(std::vector<std::int32_t>{1, 2, 4}[world.random() % 3], kSlabs),
      registered_(segments_, memory_) {}

co::Registration SimWorker::RegistrationAs(co::Role role) const {
  co::Registration r;
  r.ref = {name(), epoch_ << 32};  // Sessions of this life count up from here.
  r.role = role;
  // Of two hosts.
  r.transfer_address = absl::StrCat("shm:", name().back() % 2, ":", name());
  r.transfer_epoch = epoch_;
  if (role == co::Role::kStore) return r;
  for (std::int32_t g = 0; g < memory_.groups(); ++g) {
    const std::int32_t window = memory_.layout(g).group.window_tokens;
    r.groups.push_back({.copy_spaces = {SpaceOf(g)},
                        .window_tokens = static_cast<std::uint32_t>(window),
                        .block_bytes = 200});
  }
  r.model = kModel;
  r.block_tokens = kBlockTokens;
  r.endpoint = name();
  r.context_tokens = 4096;
  r.kv_bytes_per_token = 100;
  r.blocks_total = kSlabs;
  r.sequences_max = kSequencesMax;
  r.prefill_tokens_per_s = 2000;
  return r;
}

// Only what the index is told: engines draw what they reuse.
void SimWorker::Store(const std::vector<Chain>& chains) {
  std::vector<Chain> added;
  for (const Chain& chain : chains) {
    if (stored_.size() < kStoredMax && stored_.insert(chain).second) added.push_back(chain);
  }
  session_->SayStored(added);
  if (keeper_.ref.name.empty() || chains.empty()) return;
  process_.At(process_.Now() + std::chrono::microseconds(world_.random() % 5000),
              [this, keeper = keeper_, chains] {
                SimStore* const store = world_.store(keeper.ref.name, keeper.transfer_epoch);
                if (store != nullptr) store->Keep(chains);
              });
}

Duration SimWorker::Fetch(const std::vector<co::FetchSource>& sources,
                          const std::vector<Chain>& chains) {
  Duration took{};
  for (const co::FetchSource& source : sources) {
    const SimStore* const store = world_.store(source.store.ref.name, source.store.transfer_epoch);
    const double rate = 1e4 * std::pow(10, static_cast<double>(world_.random() % 4));
    std::uint32_t blocks = source.first_block;
    while (store != nullptr && blocks < source.end_block && store->Has(chains.at(blocks))) {
      ++blocks;
    }
    const auto needs = std::chrono::duration_cast<Duration>(
        std::chrono::duration<double>(200.0 * (blocks - source.first_block) / rate));
    took += std::min(store == nullptr ? source.compute_within : needs, source.compute_within);
    if (blocks > source.first_block) {
      ++world_.fetches;
      fetched_[{source.store.ref.name, source.tier}] = rate;
    }
    if (blocks < source.end_block) break;  // The rest is computed.
  }
  return took;
}

void SimWorker::AddFetches(co::LoadReport& load) const {
  for (const auto& [from, rate] : fetched_) {
    load.fetches.push_back(
        {.store = from.first, .tier = from.second, .codec = 1, .bytes_per_s = rate});
  }
}

// ---- Decode.

SimDecode::SimDecode(World& world, const std::string& name)
    : SimWorker(world, name),
      engine_(process_, memory_, world.random, world.refuse),
      turns_(process_, nullptr),
      receiver_(process_, turns_, registered_.pool(), {}, nullptr),
      state_(process_, engine_, receiver_, {.epoch = epoch_}) {
  engine_.Connect(state_);
  state_.set_observer(this);
  session_ = std::make_unique<Session>(
      process_, world.network, world.random, RegistrationAs(co::Role::kDecode),
      Session::Events{.on_reserve = [this](const co::ReserveAction& a) { OnReserve(a); },
                      .on_start = [this](const co::StartAction& a) { OnStart(a); },
                      .on_release = [this](const Attempt& attempt) { OnRelease(attempt); },
                      .on_snapshot = [this] { session_->SaySnapshot(Stored()); },
                      .on_drained =
                          [this] {
                            session_->Leave();
                            left_ = true;
                          },
                      .load = [this] { return Load(); },
                      .on_store = [this](const co::StoreAction& a) { OnStore(a); }});
  world.network.Listen(name, process_, [this](const std::shared_ptr<StreamCore>& stream) {
    const std::uint64_t id = next_call_++;
    const auto call = std::static_pointer_cast<CallStream>(stream);
    calls_[id] = call;
    call->on_up = [this, id](const WorkerCall& message) { OnCall(id, message); };
    call->OnClosed(StreamCore::kServer, [this, id](const absl::Status&) { calls_.erase(id); });
  });
}

SimDecode::~SimDecode() { state_.set_observer(nullptr); }

void SimDecode::Accept(std::unique_ptr<transfer::Link> link) {
  // Of std::function, which copies.
  const auto shared = std::make_shared<std::unique_ptr<transfer::Link>>(std::move(link));
  process_.Post([this, shared] {
    receiver_.AddPeer(
        std::make_unique<transfer::Channel>(process_, transfer::Peer{.name = "prefill", .epoch = 1},
                                            MakeProcessLink(process_, std::move(*shared))));
  });
}

void SimDecode::OnReserve(const co::ReserveAction& action) {
  const std::vector<TokenId> prompt =
      world_.oracle.Tokens(action.id.request_id, action.prompt_tokens);
  ASSERT_FALSE(prompt.empty()) << ToString(action.id) << ": " << action.prompt_tokens
                               << " tokens are more than it can have";
  decode::DecodeState::Order order;
  order.tokens = static_cast<std::int32_t>(action.prompt_tokens) - 1;
  order.chains = *action.chains;
  order.local = action.prefill.ref.name == action.worker.ref.name;
  order.deadline = process_.Now() + action.hold_for;
  const auto full = static_cast<std::size_t>(order.tokens / kBlockTokens);
  if (order.chains.size() > full) order.chains.resize(full);
  engine_.KnowNext({prompt.begin(), prompt.end() - 1});
  state_.Reserve(
      action.id, std::move(order),
      [this, id = action.id](const absl::StatusOr<decode::DecodeState::Promise>& p) {
        if (releasing_) return;
        if (!p.ok()) {
          return session_->Say({.kind = Kind::kRefused, .id = id, .error = p.status()});
        }
        session_->Say({.kind = Kind::kGranted,
                       .id = id,
                       .grant = p->grant.number,
                       .decode_reused_tokens = static_cast<std::uint32_t>(p->reused_tokens)});
      });
}

void SimDecode::OnStart(const co::StartAction& action) {
  if (!action.sources.empty()) Fetch(action.sources, *action.chains);
  if (state_.Knows(action.id)) {
    session_->Say({.kind = Kind::kAccepted, .id = action.id});
  } else {
    session_->Say({.kind = Kind::kRefused,
                   .id = action.id,
                   .error = absl::FailedPreconditionError("nothing is reserved")});
  }
}

void SimDecode::OnRelease(const Attempt& attempt) {
  releasing_ = true;
  state_.Release(attempt, absl::CancelledError("released by the coordinator"));
  releasing_ = false;
}

SayLoad SimDecode::Load() const {
  SayLoad load;
  load.report.sequences = static_cast<std::uint32_t>(engine_.jobs());
  load.report.blocks_used = memory_.blocks_used();
  load.live = state_.live();
  AddFetches(load.report);
  return load;
}

void SimDecode::OnAdopted(const Attempt& attempt, const transfer::HandoffReceiver::Outcome&) {
  session_->Say({.kind = Kind::kAdopted, .id = attempt});
}

void SimDecode::OnEnded(const Attempt& attempt, decode::DecodeState::End how,
                        const absl::Status& why) {
  if (releasing_) return;
  const Kind kind = how == decode::DecodeState::End::kFinished         ? Kind::kFinished
                    : how == decode::DecodeState::End::kTransferFailed ? Kind::kTransferFailed
                                                                       : Kind::kRefused;
  session_->Say({.kind = kind, .id = attempt, .error = why});
}

void SimDecode::OnCall(std::uint64_t id, const WorkerCall& call) {
  const auto found = calls_.find(id);
  if (found == calls_.end()) return;
  if (const auto* order = std::get_if<gateway::DecodeOrder>(&call)) return OnDecode(id, *order);
  if (const auto* stop = std::get_if<StopCall>(&call)) {
    if (const auto job = state_.RunningJob(stop->attempt)) engine_.StopChoice(*job, stop->choice);
  }
  found->second->End(StreamCore::kServer, absl::OkStatus());
  calls_.erase(found);
}

void SimDecode::OnDecode(std::uint64_t id, const gateway::DecodeOrder& order) {
  auto work = std::make_unique<FakeWork>();
  work->prompt = order.prompt;
  work->answers = order.n;
  work->first_choice = order.first_choice;
  work->max_tokens = order.max_tokens;
  work->seed = *order.sampling.seed;
  work->ignore_eos = order.ignore_eos;
  const std::vector<Chain> chains = ChainsFrom(order.root, order.prompt, kBlockTokens);
  const auto end = [this, id](const absl::Status& status) {
    const auto found = calls_.find(id);
    if (found == calls_.end()) return;
    found->second->End(StreamCore::kServer, status);
    calls_.erase(found);
  };
  const absl::Status taken = state_.Decode(
      order.attempt, std::move(work),
      {.on_tokens =
           [this, id](const decode::DecodeEngine::Tokens& tokens) {
             const auto found = calls_.find(id);
             if (found == calls_.end()) return;
             gateway::DecodeStep step;
             for (const FakeTokens::Output& o : static_cast<const FakeTokens&>(tokens).outputs) {
               using Finish = gateway::Output::Finish;
               step.outputs.push_back({.choice = o.choice,
                                       .token = gateway::SampledToken{.token = o.token},
                                       .finish = o.stopped ? Finish::kStop
                                                 : o.last  ? Finish::kLength
                                                           : Finish::kGoesOn});
             }
             found->second->SendDown(std::move(step));
           },
       .on_end =
           [this, end, chains](const absl::Status& status,
                               const transfer::HandoffReceiver::Outcome&) {
             if (status.ok()) Store(chains);
             end(status);
           }});
  if (!taken.ok()) return end(taken);
  calls_.at(id)->OnClosed(StreamCore::kServer,
                          [this, id, attempt = order.attempt](const absl::Status&) {
                            calls_.erase(id);
                            state_.Release(attempt, absl::CancelledError("the gateway left"));
                          });
}

std::string SimDecode::Held() const {
  if (state_.attempts() == 0 && state_.draining() == 0 && receiver_.handoffs() == 0 &&
      engine_.jobs() == 0 && memory_.AllFree()) {
    return "";
  }
  return absl::StrCat(name(), ": ", state_.attempts(), " attempts, ", state_.draining(),
                      " draining, ", receiver_.handoffs(), " handoffs, ", engine_.jobs(), " jobs, ",
                      memory_.blocks_used(), " blocks");
}

// ---- Prefill.

SimPrefill::SimPrefill(World& world, const std::string& name)
    : SimWorker(world, name),
      engine_(process_, memory_, world.random, world.refuse),
      sender_(process_, registered_.pool(), memory_.bases(),
              [this](const transfer::Channel& channel, const absl::Status&) {
                std::erase_if(channels_, [&](const auto& c) { return c.second == &channel; });
              }),
      state_(process_, engine_, *this, sender_, {.block_tokens = kBlockTokens}) {
  engine_.Connect(state_);
  state_.set_observer(this);
  session_ = std::make_unique<Session>(
      process_, world.network, world.random, RegistrationAs(co::Role::kPrefill),
      Session::Events{.on_reserve =
                          [this](const co::ReserveAction& a) {
                            session_->Say({.kind = Kind::kRefused,
                                           .id = a.id,
                                           .error = absl::FailedPreconditionError("prefills")});
                          },
                      .on_start = [this](const co::StartAction& a) { OnStart(a); },
                      .on_release = [this](const Attempt& attempt) { OnRelease(attempt); },
                      .on_snapshot = [this] { session_->SaySnapshot(Stored()); },
                      .on_drained =
                          [this] {
                            session_->Leave();
                            left_ = true;
                          },
                      .load = [this] { return Load(); },
                      .on_store = [this](const co::StoreAction& a) { OnStore(a); }});
  world.network.Listen(name, process_, [this](const std::shared_ptr<StreamCore>& stream) {
    const std::uint64_t id = next_call_++;
    const auto call = std::static_pointer_cast<CallStream>(stream);
    calls_[id] = call;
    call->on_up = [this, id](const WorkerCall& message) { OnCall(id, message); };
    call->OnClosed(StreamCore::kServer, [this, id](const absl::Status&) { calls_.erase(id); });
  });
}

SimPrefill::~SimPrefill() { state_.set_observer(nullptr); }

void SimPrefill::Get(const transfer::Peer& peer, const std::string&, Done done) {
  const std::pair<std::string, std::uint64_t> key(peer.name, peer.epoch);
  if (const auto found = channels_.find(key); found != channels_.end()) {
    return done(found->second);
  }
  process_.At(process_.Now() + std::chrono::microseconds(100 + world_.random() % 2000),
              [this, peer, key, done = std::move(done)] {
                transfer::Channel*& channel = channels_[key];
                if (channel == nullptr) {
                  std::unique_ptr<transfer::Link> link =
                      world_.dial(segments_, peer.name, peer.epoch);
                  if (link == nullptr) {
                    channels_.erase(key);
                    return done(absl::UnavailableError("no such worker, or another life of it"));
                  }
                  channel = &sender_.AddPeer(std::make_unique<transfer::Channel>(
                      process_, peer, MakeProcessLink(process_, std::move(link))));
                }
                done(channel);
              });
}

void SimPrefill::OnStart(const co::StartAction& action) {
  if (!action.sources.empty()) engine_.DelayNext(Fetch(action.sources, *action.chains));
  const absl::Status status = state_.Start(
      action.id, {.grant = {.epoch = action.decode.transfer_epoch, .number = action.grant},
                  .decode_name = action.decode.ref.name,
                  .decode_address = action.decode.transfer_address,
                  .deadline = process_.Now() + action.hold_for,
                  .last_chain = action.last_chain,
                  .decode_reused_tokens = static_cast<std::int32_t>(action.decode_reused_tokens)});
  session_->Say(
      {.kind = status.ok() ? Kind::kAccepted : Kind::kRefused, .id = action.id, .error = status});
}

void SimPrefill::OnRelease(const Attempt& attempt) {
  releasing_ = true;
  state_.Release(attempt);
  releasing_ = false;
}

SayLoad SimPrefill::Load() const {
  SayLoad load;
  load.report.blocks_used = memory_.blocks_used();
  load.live = state_.live();
  AddFetches(load.report);
  return load;
}

void SimPrefill::OnCall(std::uint64_t id, const WorkerCall& message) {
  const auto found = calls_.find(id);
  if (found == calls_.end()) return;
  const auto* const call = std::get_if<PrefillCall>(&message);
  CHECK(call != nullptr);
  const auto end = [this, id](const absl::Status& status) {
    const auto at = calls_.find(id);
    if (at == calls_.end()) return;
    at->second->End(StreamCore::kServer, status);
    calls_.erase(at);
  };
  const absl::Status taken =
      state_.Submit(call->attempt, {.tokens = call->tokens, .root = {}, .priority = 0},
                    process_.Now() + call->timeout,
                    [this, end, chains = ChainsOf(call->tokens, "", kBlockTokens)](
                        const prefill::PrefillState::Outcome& outcome) {
                      if (outcome.status.ok()) Store(chains);
                      end(outcome.status);
                    });
  if (!taken.ok()) return end(taken);
  const auto live = calls_.find(id);
  if (live == calls_.end()) return;
  live->second->OnClosed(StreamCore::kServer,
                         [this, id, attempt = call->attempt](const absl::Status&) {
                           calls_.erase(id);
                           state_.Release(attempt);
                         });
}

void SimPrefill::OnComputed(const Attempt& attempt) {
  session_->Say({.kind = Kind::kComputed, .id = attempt});
}

void SimPrefill::OnEnded(const Attempt& attempt, prefill::PrefillState::End how,
                         const absl::Status& why) {
  if (releasing_) return;
  session_->Say({.kind = how == prefill::PrefillState::End::kTransferFailed ? Kind::kTransferFailed
                                                                            : Kind::kRefused,
                 .id = attempt,
                 .error = why});
}

std::string SimPrefill::Held() const {
  if (state_.attempts() == 0 && sender_.handoffs() == 0 && engine_.jobs() == 0 &&
      memory_.AllFree()) {
    return "";
  }
  return absl::StrCat(name(), ": ", state_.attempts(), " attempts, ", sender_.handoffs(),
                      " handoffs, ", engine_.jobs(), " jobs, ", memory_.blocks_used(), " blocks");
}

}  // namespace penstock::sim
