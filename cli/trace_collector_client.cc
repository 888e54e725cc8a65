// SPDX-License-Identifier: Apache-2.0
#include "cli/trace_collector_client.h"

#include <array>
#include <memory>
#include <set>
#include <utility>

#include "base/clock_id.h"
#include "base/status.h"
#include "base/time.h"
#include "grpc/support/time.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "penstock/v1/trace.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/convert.h"

namespace penstock::cli {
namespace {

constexpr std::size_t kClockSamples = 8;

void SetPatience(grpc::ClientContext& context) {
  context.set_deadline(
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(2, GPR_TIMESPAN)));
}

std::int64_t NowNanos() { return Duration(SteadyClock().Now().time_since_epoch()).count(); }

class ProcessAsker {
 public:
  explicit ProcessAsker(const std::string& address)
      : address_(address), stub_(v1::Trace::NewStub(rpc::MakeChannel(address))) {}

  absl::StatusOr<TraceProcess> AskWho() {
    std::array<ClockSample, kClockSamples> samples;
    v1::ClockResponse said;
    // The first one connects, too: with the longest round trip, it does not count.
    for (ClockSample& sample : samples) {
      grpc::ClientContext context;
      SetPatience(context);
      sample.sent_ns = NowNanos();
      RETURN_IF_ERROR(rpc::FromGrpc(stub_->Clock(&context, {}, &said)));
      sample.received_ns = NowNanos();
      sample.theirs_ns = said.now_ns();
    }
    const std::string ours = MonoClockId();
    const bool same = !ours.empty() && said.clock_id() == ours;
    return TraceProcess{.name = said.process(),
                        .role = said.role(),
                        .address = address_,
                        .pid = said.pid(),
                        .clock = same ? ClockOffset{} : EstimateOffset(samples)};
  }

  // Of `process`, which has the index `at`.
  absl::Status AskSpans(const std::string& request_id, std::size_t at, TraceProcess& process,
                        std::vector<TraceSpan>* spans) {
    grpc::ClientContext context;
    SetPatience(context);
    v1::SpansRequest request;
    request.set_request_id(request_id);
    const auto reader = stub_->Spans(&context, request);
    for (v1::SpansResponse response; reader->Read(&response);) {
      process.forgotten = response.forgotten();
      for (const v1::TraceSpan& span : response.spans()) {
        // A name that we do not know is a newer process's.
        const std::optional<SpanName> name = ParseSpanName(span.name());
        if (name.has_value()) spans->push_back(FromProto(span, *name, at, process.clock));
      }
    }
    return rpc::FromGrpc(reader->Finish());
  }

 private:
  static TraceSpan FromProto(const v1::TraceSpan& span, SpanName name, std::size_t process,
                             const ClockOffset& clock) {
    TraceSpan made{.name = name,
                   .process = process,
                   .number = span.number(),
                   .request_id = span.request_id(),
                   .attempt = span.attempt(),
                   .begin_ns = span.begin_ns() - clock.offset_ns,
                   .end_ns = span.end_ns() - clock.offset_ns,
                   .bytes = span.bytes(),
                   .tokens = span.tokens(),
                   .blocks = span.blocks(),
                   .peer = span.peer(),
                   .transport = span.transport(),
                   .text = span.text()};
    if (span.has_layer()) made.layer = span.layer();
    if (span.has_group()) made.group = span.group();
    return made;
  }

  const std::string address_;
  const std::unique_ptr<v1::Trace::Stub> stub_;
};

absl::StatusOr<v1::StatusResponse> AskCluster(const std::string& server) {
  const auto stub = v1::Cluster::NewStub(rpc::MakeChannel(server));
  grpc::ClientContext context;
  SetPatience(context);
  v1::StatusResponse response;
  const absl::Status status = rpc::FromGrpc(stub->Status(&context, {}, &response));
  if (status.ok()) return response;
  if (status.code() == absl::StatusCode::kUnimplemented) {
    return absl::FailedPreconditionError(
        absl::StrCat(server, " is no coordinator: --server must be its address"));
  }
  return absl::Status(status.code(),
                      absl::StrCat("no coordinator answers at ", server, ": ", status.message()));
}

}  // namespace

absl::StatusOr<CollectedTrace> CollectTrace(const std::string& server,
                                            const std::vector<std::string>& also,
                                            const std::string& request_id) {
  ASSIGN_OR_RETURN(const v1::StatusResponse status, AskCluster(server));
  std::vector<std::pair<std::string, std::string>> processes = {{"coordinator", server}};
  for (const std::string& address : also) processes.emplace_back("the process", address);
  for (const auto& worker : status.workers()) {
    processes.emplace_back(worker.name(), worker.endpoint());
  }
  for (const auto& store : status.stores()) {
    if (store.state() == "ready") processes.emplace_back(store.name(), store.endpoint());
  }
  CollectedTrace collected;
  ClusterTrace& trace = collected.trace;
  trace.unix_minus_mono_ns = UnixNanos() - NowNanos();
  std::set<std::string> asked;
  for (const auto& [name, address] : processes) {
    if (!asked.insert(address).second) continue;
    ProcessAsker asker(address);
    absl::StatusOr<TraceProcess> process = asker.AskWho();
    absl::Status why = process.status();
    if (why.ok()) {
      why = asker.AskSpans(request_id, trace.processes.size(), *process, &trace.spans);
      trace.processes.push_back(*std::move(process));  // With the spans that came, if not all.
    }
    if (!why.ok())
      collected.missing.push_back(absl::StrCat(name, " at ", address, ": ", why.message()));
  }
  SortSpans(trace);
  return collected;
}

}  // namespace penstock::cli
