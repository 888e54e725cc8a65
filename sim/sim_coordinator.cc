// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_coordinator.h"

#include <type_traits>
#include <utility>

#include "base/status.h"

namespace penstock::sim {

namespace co = coordinator;

SimCoordinator::SimCoordinator(VirtualLoop& clock, Network& network, const Options& options)
    : network_(network),
      options_(options),
      process_(clock, "coordinator"),
      machine_(*co::Coordinator::Make(options.machine)) {
  network_.Listen(kCoordinatorAddress, process_,
                  [this](std::shared_ptr<StreamCore> stream) { Accept(std::move(stream)); });
}

SimCoordinator::~SimCoordinator() { network_.Die(process_); }

void SimCoordinator::Accept(std::shared_ptr<StreamCore> stream) {
  const std::uint64_t id = next_stream_++;
  if (auto join = std::dynamic_pointer_cast<JoinStream>(stream)) {
    workers_[id].stream = join;
    join->on_up = [this, id](const WorkerMessage& message) { OnWorker(id, message); };
    join->OnClosed(StreamCore::kServer, [this, id](const absl::Status&) { OnWorkerClosed(id); });
  } else if (auto attend = std::dynamic_pointer_cast<AttendStream>(stream)) {
    attendants_[id].stream = attend;
    attend->on_up = [this, id](const GatewayMessage& message) { OnGateway(id, message); };
    attend->OnClosed(StreamCore::kServer, [this, id](const absl::Status&) { OnGatewayClosed(id); });
  }
}

void SimCoordinator::OnWorker(std::uint64_t id, const WorkerMessage& message) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) return;
  const std::shared_ptr<JoinStream> stream = found->second.stream;
  const absl::Status status = Handle(id, found->second, message);
  if (!status.ok()) {
    stream->End(StreamCore::kServer, status);
    OnWorkerClosed(id);
  }
  Settle();
}

absl::Status SimCoordinator::Handle(std::uint64_t id, Worker& worker,
                                    const WorkerMessage& message) {
  const MonoTime now = process_.Now();
  const co::WorkerRef ref = worker.ref;
  if (const auto* registration = std::get_if<co::Registration>(&message)) {
    return Register(id, worker, *registration);
  }
  if (const auto* load = std::get_if<SayLoad>(&message)) {
    return machine_->Report(ref, load->report, load->live, now);
  }
  if (const auto* blocks = std::get_if<SayBlocks>(&message)) {
    return machine_->Blocks(ref, blocks->first, blocks->events, now);
  }
  if (const auto* copies = std::get_if<SayCopies>(&message)) {
    return machine_->Copies(ref, copies->first, copies->events, now);
  }
  if (const auto* event = std::get_if<co::WorkerEvent>(&message)) {
    const absl::Status status = machine_->On(ref, *event, now);
    return absl::IsAborted(status) ? absl::OkStatus() : status;
  }
  if (const auto* preflight = std::get_if<SayPreflight>(&message)) {
    const absl::Status status = machine_->Preflighted(
        ref, preflight->decode, preflight->decode_epoch, preflight->report, now);
    return absl::IsAborted(status) ? absl::OkStatus() : status;
  }
  worker.left = true;
  return machine_->Leave(ref, now);
}

absl::Status SimCoordinator::Register(std::uint64_t id, Worker& worker,
                                      const co::Registration& registration) {
  RETURN_IF_ERROR(machine_->Register(registration, process_.Now()));
  if (const auto old = by_name_.find(registration.ref.name); old != by_name_.end()) {
    const std::uint64_t before = old->second;
    by_name_.erase(old);
    workers_.at(before).stream->End(StreamCore::kServer,
                                    absl::UnavailableError("it has joined again"));
    workers_.erase(before);
  }
  worker.ref = registration.ref;
  by_name_[registration.ref.name] = id;
  worker.stream->SendDown(Joined{options_.report_every});
  return absl::OkStatus();
}

void SimCoordinator::OnWorkerClosed(std::uint64_t id) {
  const auto found = workers_.find(id);
  if (found == workers_.end()) return;
  const Worker worker = std::move(found->second);
  workers_.erase(found);
  worker.stream->on_up = nullptr;
  const auto named = by_name_.find(worker.ref.name);
  if (named == by_name_.end() || named->second != id) return;
  by_name_.erase(named);
  machine_->Disconnected(worker.ref, process_.Now());
  Settle();
}

void SimCoordinator::OnGateway(std::uint64_t id, const GatewayMessage& message) {
  const auto found = attendants_.find(id);
  if (found == attendants_.end()) return;
  Attendant& attendant = found->second;
  if (const auto* hello = std::get_if<Hello>(&message)) {
    Attend(id, attendant, hello->name);
  } else if (const auto* query = std::get_if<co::RouteQuery>(&message)) {
    const std::string request = query->request;
    co::RouteAnswer answer = machine_->Route(*query, process_.Now());
    attendant.stream->SendDown(Routed{request, std::move(answer)});
  } else {
    machine_->Cancel(attendant.name, std::get<CancelRequest>(message).request, process_.Now());
  }
  Settle();
}

void SimCoordinator::Attend(std::uint64_t id, Attendant& attendant, const std::string& name) {
  attendant.name = name;
  Gateway& gateway = gateways_[name];
  process_.CancelTimer(gateway.timer);
  if (gateway.stream != 0) {
    attendants_.at(gateway.stream)
        .stream->End(StreamCore::kServer, absl::AbortedError("it attends over another stream"));
    attendants_.erase(gateway.stream);
  }
  gateway.stream = id;
  attendant.stream->SendDown(Attending{models_});
  for (GatewayEvent& event : gateway.missed) attendant.stream->SendDown(std::move(event));
  gateway.missed.clear();
}

void SimCoordinator::OnGatewayClosed(std::uint64_t id) {
  const auto found = attendants_.find(id);
  if (found == attendants_.end()) return;
  const std::string name = found->second.name;
  found->second.stream->on_up = nullptr;
  attendants_.erase(found);
  const auto gateway = gateways_.find(name);
  if (gateway == gateways_.end() || gateway->second.stream != id) return;
  gateway->second.stream = 0;
  gateway->second.timer = process_.At(process_.Now() + options_.gateway_grace, [this, name] {
    gateways_.erase(name);
    machine_->GatewayGone(name, process_.Now());
    Settle();
  });
}

void SimCoordinator::Drain(const std::string& worker, Duration move_after) {
  process_.Post([this, worker, move_after] {
    const absl::StatusOr<co::WorkerRef> ref = machine_->FindWorker(worker);
    if (ref.ok()) machine_->Drain(*ref, move_after, process_.Now()).IgnoreError();
    Settle();
  });
}

template <typename A>
void SimCoordinator::Do(const A& action) {
  if constexpr (requires { action.gateway; }) {
    SendGateway(action.gateway, action);
  } else if constexpr (std::is_same_v<A, co::SessionEndedAction>) {
    const co::WorkerRef& ref = action.worker.ref;
    const auto named = by_name_.find(ref.name);
    if (named == by_name_.end() || workers_.at(named->second).ref.epoch != ref.epoch) return;
    const Worker& worker = workers_.at(named->second);
    worker.stream->End(StreamCore::kServer,
                       worker.left ? absl::OkStatus() : absl::AbortedError("session ended"));
    worker.stream->on_up = nullptr;
    workers_.erase(named->second);
    by_name_.erase(named);
  } else if constexpr (std::is_same_v<A, co::PreflightAction>) {
    SendWorker(action.prefill.ref, action);
  } else {
    if (SendWorker(action.worker.ref, action)) return;
    if constexpr (std::is_same_v<A, co::ReserveAction> || std::is_same_v<A, co::StartAction>) {
      machine_
          ->On(action.worker.ref,
               {.kind = co::WorkerEvent::Kind::kRefused,
                .id = action.id,
                .error = absl::UnavailableError("the worker is away")},
               process_.Now())
          .IgnoreError();
    }
  }
}

void SimCoordinator::Settle() {
  for (std::vector<co::Action> actions = machine_->TakeActions(); !actions.empty();
       actions = machine_->TakeActions()) {
    for (const co::Action& action : actions) {
      std::visit([this](const auto& a) { Do(a); }, action);
    }
  }
  TellModels();
  const MonoTime next = machine_->NextDeadline();
  if (next == next_) return;
  process_.CancelTimer(timer_);
  next_ = next;
  if (next == MonoTime::max()) return;
  timer_ = process_.At(next, [this] {
    next_ = MonoTime::max();
    machine_->Tick(process_.Now());
    Settle();
  });
}

bool SimCoordinator::SendWorker(const co::WorkerRef& ref, WorkerCommand command) {
  const auto named = by_name_.find(ref.name);
  if (named == by_name_.end()) return false;
  const Worker& worker = workers_.at(named->second);
  if (worker.ref.epoch != ref.epoch) return false;
  worker.stream->SendDown(std::move(command));
  return true;
}

void SimCoordinator::SendGateway(const std::string& name, GatewayEvent event) {
  const auto gateway = gateways_.find(name);
  if (gateway == gateways_.end()) return;
  if (gateway->second.stream != 0) {
    attendants_.at(gateway->second.stream).stream->SendDown(std::move(event));
  } else {
    gateway->second.missed.push_back(std::move(event));
  }
}

void SimCoordinator::TellModels() {
  if (std::exchange(models_version_, machine_->models_version()) == machine_->models_version()) {
    return;
  }
  std::vector<co::ModelView> models = machine_->Models();
  if (models == models_) return;
  models_ = std::move(models);
  for (const auto& [name, gateway] : gateways_) {
    if (gateway.stream != 0) attendants_.at(gateway.stream).stream->SendDown(Attending{models_});
  }
}

}  // namespace penstock::sim
