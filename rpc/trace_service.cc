// SPDX-License-Identifier: Apache-2.0
#include "rpc/trace_service.h"

#include <unistd.h>

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "base/clock_id.h"
#include "base/status.h"
#include "base/time.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/trace.grpc.pb.h"
#include "rpc/reply.h"

namespace penstock::rpc {
namespace {

constexpr std::size_t kMessageSpansMax = 256;
constexpr std::int64_t kRequestIdBytesMax = 64;

absl::Status NotTraced() {
  return absl::FailedPreconditionError("this process does not trace (--no-trace)");
}

std::int64_t Nanos(MonoTime time) { return Duration(time.time_since_epoch()).count(); }

void ToProto(std::uint64_t number, const Span& span, v1::TraceSpan* to) {
  const auto set = [](std::string_view from, std::string* text) { *text = from; };
  set(ToString(span.name), to->mutable_name());
  set(span.request_id, to->mutable_request_id());
  to->set_attempt(span.attempt);
  to->set_begin_ns(Nanos(span.begin));
  to->set_end_ns(Nanos(span.end));
  to->set_bytes(span.bytes);
  to->set_tokens(span.tokens);
  to->set_blocks(span.blocks);
  if (span.layer >= 0) to->set_layer(span.layer);
  if (span.group >= 0) to->set_group(span.group);
  set(span.peer, to->mutable_peer());
  set(span.transport, to->mutable_transport());
  set(span.text, to->mutable_text());
  to->set_number(number);
}

// One Spans call; deletes itself when gRPC is done with it. The next message is made when the last
// has been taken, from the ring as it then is.
class SpansCall final : public grpc::ServerWriteReactor<v1::SpansResponse> {
 public:
  SpansCall(const SpanRing* ring, const v1::SpansRequest& request)
      : ring_(ring), wanted_(request.request_id()), cursor_(request.cursor()) {
    absl::Status status =
        CheckRange("length of request_id", static_cast<int>(wanted_.size()), 0, kRequestIdBytesMax);
    if (status.ok() && ring_ == nullptr) status = NotTraced();
    if (!status.ok()) {
      Finish(ToGrpc(status));
      return;
    }
    // What is recorded while the call runs is for the next one: this one ends.
    end_ = ring_->recorded();
    SendNext();
  }

 private:
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "nobody reads"));
    SendNext();
  }
  void OnDone() override { delete this; }

  // The last message has no spans: it says where to go on.
  void SendNext() {
    if (std::exchange(last_, false)) return Finish(grpc::Status::OK);
    message_.Clear();
    while (cursor_ < end_ && message_.spans_size() < static_cast<int>(kMessageSpansMax)) {
      const std::uint64_t left =
          kMessageSpansMax - static_cast<std::uint64_t>(message_.spans_size());
      cursor_ = ring_->Read(cursor_, left, [this](std::uint64_t number, const Span& span) {
        if (!wanted_.empty() && !IsOfRequest(span.request_id, wanted_)) return;
        ToProto(number, span, message_.add_spans());
      });
    }
    last_ = message_.spans_size() == 0;
    message_.set_next(cursor_);
    message_.set_forgotten(ring_->forgotten());
    StartWrite(&message_);
  }

  const SpanRing* const ring_;
  const std::string wanted_;
  std::uint64_t cursor_;
  std::uint64_t end_ = 0;
  bool last_ = false;
  v1::SpansResponse message_;
};

class TraceService final : public v1::Trace::CallbackService {
 public:
  explicit TraceService(const TraceServiceParts& parts) : parts_(parts), clock_id_(MonoClockId()) {}

  grpc::ServerUnaryReactor* Clock(grpc::CallbackServerContext* context, const v1::ClockRequest*,
                                  v1::ClockResponse* response) override {
    if (parts_.spans == nullptr) return Reply(context, NotTraced());
    response->set_clock_id(clock_id_);
    response->set_process(parts_.process);
    response->set_role(parts_.role);
    response->set_pid(static_cast<std::uint64_t>(::getpid()));
    response->set_now_ns(Nanos(SteadyClock().Now()));
    return Reply(context, absl::OkStatus());
  }

  grpc::ServerWriteReactor<v1::SpansResponse>* Spans(grpc::CallbackServerContext*,
                                                     const v1::SpansRequest* request) override {
    return new SpansCall(parts_.spans, *request);
  }

 private:
  const TraceServiceParts parts_;
  const std::string clock_id_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTraceService(const TraceServiceParts& parts) {
  return std::make_unique<TraceService>(parts);
}

}  // namespace penstock::rpc
