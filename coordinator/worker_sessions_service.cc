// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "coordinator/sessions_service.h"
#include "rpc/convert.h"

namespace penstock::coordinator {

void WorkerSessions::Open(std::uint64_t id, std::shared_ptr<WorkerStream> stream) {
  sessions_.emplace(id, Session{.stream = std::move(stream), .ref = {}});
}

void WorkerSessions::OnMessage(std::uint64_t id, const v1::WorkerMessage& message) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  // A copy: the state machine may end the session meanwhile.
  const std::shared_ptr<WorkerStream> stream = it->second.stream;
  const absl::Status status = Handle(id, it->second, message);
  if (!status.ok()) {
    LOG_WARNING("worker's stream ends",
                {{"worker", it->second.ref.name}, {"reason", status.ToString()}});
    stream->End(status);
  }
  settler_.Settle();
}

absl::Status WorkerSessions::Handle(std::uint64_t id, Session& session,
                                    const v1::WorkerMessage& message) {
  const MonoTime now = loop_.Now();
  const WorkerRef ref = session.ref;
  if (message.has_register_()) return Register(id, session, message.register_());
  if (ref.epoch == 0) {
    return absl::InvalidArgumentError("the first message must be register");
  }
  switch (message.message_case()) {
    case v1::WorkerMessage::kLoad: {
      ASSIGN_OR_RETURN(const Load load, FromProto(message.load()));
      RETURN_IF_ERROR(machine_.Report(ref, load.report, load.live, now));
      if (durable_ != nullptr) durable_->Reported(ref);
      return absl::OkStatus();
    }
    case v1::WorkerMessage::kBlocks: {
      ASSIGN_OR_RETURN(const std::vector<BlockEvent> events, FromProto(message.blocks()));
      return machine_.Blocks(ref, message.blocks().first(), events, now);
    }
    case v1::WorkerMessage::kCopies: {
      ASSIGN_OR_RETURN(const std::vector<CopyEvent> events, FromProto(message.copies()));
      return machine_.Copies(ref, message.copies().first(), events, now);
    }
    case v1::WorkerMessage::kAttempt: {
      ASSIGN_OR_RETURN(const WorkerEvent event, FromProto(message.attempt()));
      const absl::Status status = machine_.On(ref, event, now);
      // Of an attempt that is over by now: it has been told to let go.
      return absl::IsAborted(status) ? absl::OkStatus() : status;
    }
    case v1::WorkerMessage::kPreflight: {
      const v1::Preflight::Result& result = message.preflight();
      ASSIGN_OR_RETURN(const PairReport report, FromProto(result));
      const absl::Status status =
          machine_.Preflighted(ref, result.peer(), result.peer_epoch(), report, now);
      if (!status.ok()) return absl::IsAborted(status) ? absl::OkStatus() : status;
      LOG_INFO("pair tried", {{"prefill", ref.name},
                              {"decode", result.peer()},
                              {"transport", report.transport},
                              {"result", report.status.ToString()}});
      return absl::OkStatus();
    }
    case v1::WorkerMessage::kLeave:
      session.left = true;
      return machine_.Leave(ref, now);
    case v1::WorkerMessage::kRegister:
    case v1::WorkerMessage::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("message is not set, or of a kind that is not known here");
}

absl::Status WorkerSessions::Register(std::uint64_t id, Session& session,
                                      const v1::WorkerMessage::Register& message) {
  if (session.ref.epoch != 0 || session.registering) {
    return absl::InvalidArgumentError(
        absl::StrCat("register must come once, '", session.ref.name, "' has registered"));
  }
  ASSIGN_OR_RETURN(const Registration registration, FromProto(message));
  if (durable_ == nullptr) return Admit(id, session, registration, message.term());
  RETURN_IF_ERROR(machine_.CheckRegistration(registration));
  if (durable_->IsDurable(registration.ref)) {
    durable_->Began(registration, nullptr);
    return Admit(id, session, registration, message.term());
  }
  session.registering = true;
  durable_->Began(registration, [this, id, registration, term = message.term()] {
    OnDurable(id, registration, term);
  });
  return absl::OkStatus();
}

void WorkerSessions::OnDurable(std::uint64_t id, const Registration& registration,
                               std::uint64_t followed) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return Forget(registration.ref);  // Its stream has broken meanwhile.
  it->second.registering = false;
  const std::shared_ptr<WorkerStream> stream = it->second.stream;
  const absl::Status status = Admit(id, it->second, registration, followed);
  if (!status.ok()) {
    LOG_WARNING("worker's stream ends",
                {{"worker", registration.ref.name}, {"reason", status.ToString()}});
    Forget(registration.ref);
    stream->End(status);
  }
  settler_.Settle();
}

// What was written of a life that did not begin. Unless it has begun, over another stream.
void WorkerSessions::Forget(const WorkerRef& ref) {
  const absl::StatusOr<WorkerRef> lives = machine_.FindWorker(ref.name);
  if (lives.ok() && lives->epoch >= ref.epoch) return;
  machine_.Restore(ref, loop_.Now());
  durable_->Ended(ref);
}

absl::Status WorkerSessions::Admit(std::uint64_t id, Session& session,
                                   const Registration& registration, std::uint64_t followed) {
  ASSIGN_OR_RETURN(const std::uint64_t term, settler_.TermFor(followed));
  RETURN_IF_ERROR(machine_.Register(registration, loop_.Now()));
  const WorkerRef& ref = registration.ref;
  // Its own earlier stream may not have broken yet; or that of an earlier session, which has ended.
  if (const auto old = by_name_.find(ref.name); old != by_name_.end()) {
    Session& before = sessions_.at(old->second);
    before.stream->End(
        before.ref.epoch == ref.epoch
            ? absl::UnavailableError(absl::StrCat("'", ref.name, "' has joined again"))
            : absl::AbortedError(absl::StrCat("'", ref.name, "' has joined in epoch ", ref.epoch,
                                              ", this session is of epoch ", before.ref.epoch)));
    by_name_.erase(old);
  }
  session.ref = ref;
  by_name_[ref.name] = id;
  session.is_store = registration.role == Role::kStore;
  if (session.is_store) {
    LOG_INFO("store node joined", {{"store", ref.name}, {"epoch", ref.epoch}});
  } else {
    LOG_INFO("worker joined", {{"worker", ref.name},
                               {"role", ToString(registration.role)},
                               {"model", registration.model},
                               {"epoch", ref.epoch}});
  }
  v1::WorkerCommand command;
  rpc::ToProto(report_every_, command.mutable_joined()->mutable_report_every());
  rpc::ToProto(ttl_, command.mutable_joined()->mutable_ttl());
  command.mutable_joined()->set_term(term);
  session.stream->Send(std::move(command));
  return absl::OkStatus();
}

void WorkerSessions::OnClosed(std::uint64_t id) {
  const auto it = sessions_.find(id);
  if (it == sessions_.end()) return;
  const Session session = std::move(it->second);
  sessions_.erase(it);
  const auto named = by_name_.find(session.ref.name);
  if (named == by_name_.end() || named->second != id) return;
  by_name_.erase(named);
  LOG_WARNING(
      session.is_store ? "store node is away" : "worker is away",
      {{session.is_store ? "store" : "worker", session.ref.name}, {"epoch", session.ref.epoch}});
  machine_.Disconnected(session.ref, loop_.Now());
  settler_.Settle();
}

void WorkerSessions::EndAll(const absl::Status& why, const std::string& leader) {
  for (auto& [id, session] : sessions_) {
    SendElsewhere(*session.stream, v1::WorkerCommand(), leader, why);
  }
}

bool WorkerSessions::Send(const WorkerRef& ref, v1::WorkerCommand command) {
  const auto named = by_name_.find(ref.name);
  if (named == by_name_.end()) return false;
  const Session& session = sessions_.at(named->second);
  if (session.ref.epoch != ref.epoch) return false;
  session.stream->Send(std::move(command));
  return true;
}

// The answer of a worker that cannot be asked. An attempt that is over by now is none to refuse.
void WorkerSessions::Refuse(const WorkerRef& ref, const Attempt& id) {
  machine_
      .On(ref,
          {.kind = WorkerEvent::Kind::kRefused,
           .id = id,
           .error = absl::UnavailableError(absl::StrCat("'", ref.name, "' is away"))},
          loop_.Now())
      .IgnoreError();
}

void WorkerSessions::Do(const ReserveAction& action) {
  if (!Send(action.worker.ref, ToProto(action))) Refuse(action.worker.ref, action.id);
}

void WorkerSessions::Do(const StartAction& action) {
  if (!Send(action.worker.ref, ToProto(action))) Refuse(action.worker.ref, action.id);
}

void WorkerSessions::Do(const ReleaseAction& action) { Send(action.worker.ref, ToProto(action)); }

void WorkerSessions::Do(const SnapshotAction& action) {
  v1::WorkerCommand command;
  command.mutable_snapshot();
  Send(action.worker.ref, std::move(command));
}

void WorkerSessions::Do(const DrainedAction& action) {
  v1::WorkerCommand command;
  command.mutable_drained();
  Send(action.worker.ref, std::move(command));
}

void WorkerSessions::Do(const PreflightAction& action) {
  Send(action.prefill.ref, ToProto(action));
}

void WorkerSessions::Do(const SessionEndedAction& action) {
  const WorkerRef& ref = action.worker.ref;
  if (durable_ != nullptr) durable_->Ended(ref);
  const auto named = by_name_.find(ref.name);
  if (named == by_name_.end()) return;
  const Session& session = sessions_.at(named->second);
  if (session.ref.epoch != ref.epoch) return;
  LOG_INFO("session ended",
           {{session.is_store ? "store" : "worker", ref.name}, {"epoch", ref.epoch}});
  session.stream->End(session.left ? absl::OkStatus()
                                   : absl::AbortedError(absl::StrCat(
                                         "the session of '", ref.name, "' in epoch ", ref.epoch,
                                         " has ended: join with a higher one")));
  by_name_.erase(named);
}

}  // namespace penstock::coordinator
