// SPDX-License-Identifier: Apache-2.0
#include "coordinator/host_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "coordinator/coordinator_metrics.h"
#include "rpc/convert.h"

namespace penstock::coordinator {
namespace {

constexpr Duration kLoadAgain = std::chrono::milliseconds(200);

std::string LeaderKey(const ClusterService::Options& options) {
  return options.etcd_prefix + "leader";
}

}  // namespace

Host::Lead::Lead(Loop& loop, Host& host, const ClusterService::Options& options,
                 std::unique_ptr<DurableState> durable_in)
    : machine(*Coordinator::Make(options.coordinator)),
      durable(std::move(durable_in)),
      workers(loop, *machine, host, durable.get(), options.report_every,
              options.coordinator.members.ttl),
      gateways(loop, *machine, host, options.gateway_grace) {}

Host::Host(Loop& loop, const ClusterService::Options& options, std::unique_ptr<rpc::Etcd> etcd)
    : loop_(loop),
      options_(options),
      begun_(loop.Now()),
      etcd_(std::move(etcd)),
      leading_(etcd_ == nullptr) {
  NewLead();
}

Host::~Host() {
  loop_.CancelTimer(timer_);
  loop_.CancelTimer(load_timer_);
}

void Host::NewLead() {
  loop_.CancelTimer(timer_);
  next_ = MonoTime::max();
  std::unique_ptr<DurableState> durable;
  if (etcd_ != nullptr) {
    if (lead_ != nullptr) {
      errors_before_ += lead_->durable->errors();
      late_before_ += lead_->durable->late();
    }
    durable = std::make_unique<DurableState>(
        loop_, *etcd_,
        DurableState::Options{.prefix = options_.etcd_prefix,
                              .leader_key = LeaderKey(options_),
                              .ttl = options_.coordinator.members.ttl,
                              .ended_max = options_.coordinator.members.ended_max},
        [this] { leadership_->Look(); });
  }
  lead_ = std::make_unique<Lead>(loop_, *this, options_, std::move(durable));
}

void Host::Begin(const std::string& name, const std::string& address,
                 std::function<void(bool leading)> on_leading) {
  on_leading_ = std::move(on_leading);
  if (leading_) return on_leading_(true);
  leadership_ = std::make_unique<Leadership>(
      loop_, *etcd_,
      Leadership::Options{.key = LeaderKey(options_), .name = name, .address = address},
      Leadership::Events{
          .on_won = [this](std::int64_t revision) { Load(revision); },
          .on_lost = [this] { OnLost(); },
          .followed = [this] { return lead_->workers.any(); },
          .on_store =
              [](const absl::Status& why) {
                if (why.ok()) return LOG_INFO("store answers", {});
                LOG_WARNING("store does not answer", {{"reason", why.ToString()}});
              },
      });
}

void Host::End(std::function<void()> done) {
  ended_ = true;
  const absl::Status why = absl::UnavailableError("the coordinator ends");
  lead_->workers.EndAll(why, "");
  lead_->gateways.EndAll(why, "");
  on_leading_ = nullptr;
  if (leadership_ == nullptr) return done();
  leadership_->Resign(std::move(done));
}

void Host::Load(std::int64_t revision) {
  loop_.CancelTimer(load_timer_);
  lead_->durable->Load(revision, [this, revision](absl::StatusOr<DurableState::Loaded> loaded) {
    if (!ended_) OnLoaded(revision, std::move(loaded));
  });
}

void Host::OnLoaded(std::int64_t revision, absl::StatusOr<DurableState::Loaded> loaded) {
  if (absl::IsAborted(loaded.status())) return leadership_->Look();
  if (!loaded.ok()) {
    LOG_WARNING("state cannot be read", {{"reason", loaded.status().ToString()}});
    load_timer_ = loop_.At(loop_.Now() + kLoadAgain, [this, revision] { Load(revision); });
    return;
  }
  const MonoTime now = loop_.Now();
  for (const WorkerRef& ended : loaded->ended) lead_->machine->Restore(ended, now);
  term_ = std::max(term_, static_cast<std::uint64_t>(revision));
  const std::size_t known = loaded->workers.size();
  lead_->listed = std::move(loaded->workers);
  lead_->listed_until = now + options_.coordinator.members.ttl;
  LOG_INFO("leads", {{"term", term_}, {"workers", known}, {"lives", loaded->ended.size()}});
  if (!std::exchange(leading_, true) && on_leading_ != nullptr) on_leading_(true);
  Settle();
}

void Host::OnLost() {
  loop_.CancelTimer(load_timer_);
  LOG_WARNING("leads no more", {{"term", term_}, {"leader", leadership_->leader()}});
  const bool led = std::exchange(leading_, false);
  const absl::Status why = Standby();
  lead_->workers.EndAll(why, leadership_->leader());
  lead_->gateways.EndAll(why, leadership_->leader());
  NewLead();
  if (led && on_leading_ != nullptr) on_leading_(false);
}

absl::Status Host::Standby() const {
  const std::string leader = leadership_ == nullptr ? "" : leadership_->leader();
  return absl::UnavailableError(
      leader.empty() ? "this coordinator is a standby; no leader is known"
                     : absl::StrCat("this coordinator is a standby; ", leader, " leads"));
}

absl::StatusOr<std::uint64_t> Host::TermFor(std::uint64_t followed) {
  if (followed <= term_) return term_;
  if (followed >= INT64_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("term must be below 2^63, got ", followed));
  }
  // Its term is of a store that has lost its state, or of one that this store knows nothing of.
  if (leadership_ == nullptr || leadership_->confirmed()) return term_ = followed + 1;
  return absl::UnavailableError(
      absl::StrCat("a leader of term ", followed, " was followed; that of this one is ", term_));
}

void Host::Open(std::uint64_t id, const std::shared_ptr<WorkerStream>& stream) {
  if (leading_ && !ended_) return lead_->workers.Open(id, stream);
  SendElsewhere(*stream, v1::WorkerCommand(), leadership_ == nullptr ? "" : leadership_->leader(),
                Standby());
}

void Host::Open(std::uint64_t id, const std::shared_ptr<GatewayStream>& stream) {
  if (leading_ && !ended_) return lead_->gateways.Open(id, stream);
  SendElsewhere(*stream, v1::GatewayEvent(), leadership_ == nullptr ? "" : leadership_->leader(),
                Standby());
}

void Host::Settle() {
  Coordinator& machine = *lead_->machine;
  for (std::vector<Action> actions = machine.TakeActions(); !actions.empty();
       actions = machine.TakeActions()) {
    for (const Action& action : actions) {
      std::visit(
          [this](const auto& a) {
            if constexpr (requires { a.gateway; }) {
              lead_->gateways.Do(a);
            } else {
              lead_->workers.Do(a);
            }
          },
          action);
    }
  }
  lead_->gateways.TellModels();
  const MonoTime next = machine.NextDeadline();
  if (next == next_) return;
  loop_.CancelTimer(timer_);
  next_ = next;
  if (next == MonoTime::max()) return;
  timer_ = loop_.At(next, [this] {
    next_ = MonoTime::max();
    lead_->machine->Tick(loop_.Now());
    Settle();
  });
}

absl::StatusOr<std::string> Host::Explain(const std::string& request) const {
  if (!leading_) return Standby();
  ASSIGN_OR_RETURN(const Explanation explanation, lead_->machine->Explain(request));
  return ToString(explanation);
}

absl::Status Host::Drain(const std::string& name, Duration move_after) {
  if (!leading_) return Standby();
  ASSIGN_OR_RETURN(const WorkerRef ref, lead_->machine->FindWorker(name));
  RETURN_IF_ERROR(lead_->machine->Drain(ref, move_after, loop_.Now()));
  Settle();
  return absl::OkStatus();
}

void Host::Status(v1::StatusResponse* response) const {
  const Coordinator& machine = *lead_->machine;
  for (const WorkerView& worker : machine.Workers()) ToProto(worker, response->add_workers());
  for (const StoreView& store : machine.Stores()) ToProto(store, response->add_stores());
  ListAway(response);
  for (const PairView& pair : machine.Pairs()) ToProto(pair, response->add_pairs());
  for (const ModelView& model : machine.Models()) ToProto(model, response->add_models());
  for (const std::string& name : lead_->gateways.names()) response->add_gateways(name);
  const Coordinator::Stats stats = machine.stats();
  response->set_requests(stats.requests);
  response->set_queued(stats.queued);
  response->set_finished(stats.finished);
  response->set_failed(stats.failed);
  response->set_refused(stats.refused);
  rpc::ToProto(loop_.Now() - begun_, response->mutable_up());
  response->set_standby(!leading_);
  if (!leading_ && leadership_ != nullptr) response->set_leader(leadership_->leader());
  if (leading_) response->set_term(term_);
}

void Host::ListAway(v1::StatusResponse* response) const {
  if (loop_.Now() >= lead_->listed_until) return;
  for (const Registration& info : lead_->listed) {
    if (lead_->machine->FindWorker(info.ref.name).ok()) continue;
    if (info.role == Role::kStore) {
      ToProto(StoreView{.info = info, .load = {}, .state = "away"}, response->add_stores());
    } else {
      ToProto(WorkerView{.info = info, .load = {}, .state = "away"}, response->add_workers());
    }
  }
}

void Host::Write(MetricsWriter& writer) const {
  WriteMetrics(*lead_->machine, lead_->gateways.names().size(), writer);
  const bool store = lead_->durable != nullptr;
  StoreStats stats = {.leading = leading_};
  if (store) {
    stats.errors = errors_before_ + lead_->durable->errors() +
                   (leadership_ == nullptr ? 0 : leadership_->errors());
    stats.late = late_before_ + lead_->durable->late();
  }
  WriteMetrics(stats, writer);
}

}  // namespace penstock::coordinator
