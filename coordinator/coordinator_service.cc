// SPDX-License-Identifier: Apache-2.0
#include "coordinator/coordinator_service.h"

#include <atomic>
#include <utility>

#include "base/epoll_loop.h"
#include "base/status.h"
#include "coordinator/coordinator_metrics.h"
#include "coordinator/sessions_service.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/reply.h"

namespace penstock::coordinator {
namespace {

// The state machine and its streams. On the loop.
class Host final : public Settler {
 public:
  Host(EpollLoop& loop, std::unique_ptr<Coordinator> made, const ClusterService::Options& options)
      : loop_(loop),
        begun_(loop.Now()),
        machine_(std::move(made)),
        workers(loop, *machine_, *this, options.report_every, options.coordinator.members.ttl),
        gateways(loop, *machine_, *this, options.gateway_grace) {}
  ~Host() override { loop_.CancelTimer(timer_); }

  void Settle() override {
    for (std::vector<Action> actions = machine_->TakeActions(); !actions.empty();
         actions = machine_->TakeActions()) {
      for (const Action& action : actions) std::visit([this](const auto& a) { Do(a); }, action);
    }
    gateways.TellModels();
    const MonoTime next = machine_->NextDeadline();
    if (next == next_) return;
    loop_.CancelTimer(timer_);
    next_ = next;
    if (next == MonoTime::max()) return;
    timer_ = loop_.At(next, [this] {
      next_ = MonoTime::max();
      machine_->Tick(loop_.Now());
      Settle();
    });
  }

  absl::StatusOr<std::string> Explain(const std::string& request) const {
    ASSIGN_OR_RETURN(const Explanation explanation, machine_->Explain(request));
    return ToString(explanation);
  }
  void Status(v1::StatusResponse* response) const {
    for (const WorkerView& worker : machine_->Workers()) ToProto(worker, response->add_workers());
    for (const PairView& pair : machine_->Pairs()) ToProto(pair, response->add_pairs());
    for (const ModelView& model : machine_->Models()) ToProto(model, response->add_models());
    for (const std::string& name : gateways.names()) response->add_gateways(name);
    const Coordinator::Stats stats = machine_->stats();
    response->set_requests(stats.requests);
    response->set_queued(stats.queued);
    response->set_finished(stats.finished);
    response->set_failed(stats.failed);
    response->set_refused(stats.refused);
    rpc::ToProto(loop_.Now() - begun_, response->mutable_up());
  }
  void Write(MetricsWriter& writer) const {
    WriteMetrics(*machine_, gateways.names().size(), writer);
  }
  absl::Status Drain(const std::string& name, Duration move_after) {
    ASSIGN_OR_RETURN(const WorkerRef ref, machine_->FindWorker(name));
    RETURN_IF_ERROR(machine_->Drain(ref, move_after, loop_.Now()));
    Settle();
    return absl::OkStatus();
  }

 private:
  template <typename A>
  void Do(const A& action) {
    if constexpr (requires { action.gateway; }) {
      gateways.Do(action);
    } else {
      workers.Do(action);
    }
  }

  EpollLoop& loop_;
  const MonoTime begun_;
  const std::unique_ptr<Coordinator> machine_;
  Loop::TimerId timer_{};
  MonoTime next_ = MonoTime::max();  // When the timer rings.

 public:
  WorkerSessions workers;
  GatewaySessions gateways;
};

class Service final : public v1::Cluster::CallbackService {
 public:
  Service(EpollLoop& loop, Host& host) : loop_(loop), host_(host) {}

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::WorkerCommand>* Join(
      grpc::CallbackServerContext* context) override {
    return Accept<WorkerStream>(context, host_.workers);
  }
  grpc::ServerBidiReactor<v1::GatewayMessage, v1::GatewayEvent>* Attend(
      grpc::CallbackServerContext* context) override {
    return Accept<GatewayStream>(context, host_.gateways);
  }
  grpc::ServerUnaryReactor* Explain(grpc::CallbackServerContext* context,
                                    const v1::ExplainRequest* request,
                                    v1::ExplainResponse* response) override {
    return OnLoop(context, [this, request, response] {
      absl::StatusOr<std::string> text = host_.Explain(request->request_id());
      if (text.ok()) response->set_text(*std::move(text));
      return text.status();
    });
  }
  grpc::ServerUnaryReactor* Status(grpc::CallbackServerContext* context, const v1::StatusRequest*,
                                   v1::StatusResponse* response) override {
    return OnLoop(context, [this, response] {
      host_.Status(response);
      return absl::OkStatus();
    });
  }
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request, v1::DrainResponse*) override {
    const absl::StatusOr<Duration> move_after = rpc::FromProto("move_after", request->move_after());
    if (!move_after.ok()) return rpc::Reply(context, move_after.status());
    return OnLoop(context, [this, request, after = *move_after] {
      return host_.Drain(request->worker(), after);
    });
  }

 private:
  template <typename Stream, typename Sessions>
  Stream* Accept(grpc::CallbackServerContext* context, Sessions& sessions) {
    const std::uint64_t id = ++streams_;
    const auto stream = Stream::Make(
        context, loop_, {},
        {.on_message = [&sessions, id](const auto& message) { sessions.OnMessage(id, message); },
         .on_closed = [&sessions, id] { sessions.OnClosed(id); }});
    // Before its first message: gRPC reads none before it has the stream.
    loop_.Post([&sessions, id, stream] { sessions.Open(id, stream); });
    return stream.get();
  }
  template <typename Call>
  grpc::ServerUnaryReactor* OnLoop(grpc::CallbackServerContext* context, Call call) {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    loop_.Post([reactor, call = std::move(call)] { reactor->Finish(rpc::ToGrpc(call())); });
    return reactor;
  }

  EpollLoop& loop_;
  Host& host_;
  std::atomic<std::uint64_t> streams_{0};
};

}  // namespace

class ClusterService::Impl {
 public:
  std::unique_ptr<EpollLoop> loop;
  std::unique_ptr<Host> host;  // On the loop.
  std::unique_ptr<Service> service;

  ~Impl() {
    // What streams have posted runs before.
    if (host != nullptr) loop->Run([this] { host.reset(); });
  }
};

absl::StatusOr<std::unique_ptr<ClusterService>> ClusterService::Make(const Options& options) {
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(std::unique_ptr<Coordinator> machine, Coordinator::Make(options.coordinator));
  ASSIGN_OR_RETURN(impl->loop, EpollLoop::Make("coordinator"));
  impl->loop->Run(
      [&] { impl->host = std::make_unique<Host>(*impl->loop, std::move(machine), options); });
  impl->service = std::make_unique<Service>(*impl->loop, *impl->host);
  return std::unique_ptr<ClusterService>(new ClusterService(std::move(impl)));
}

ClusterService::ClusterService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ClusterService::~ClusterService() = default;

grpc::Service* ClusterService::service() { return impl_->service.get(); }

void ClusterService::AddMetrics(Metrics& metrics) {
  metrics.AddOn(*impl_->loop,
                [host = impl_->host.get()](MetricsWriter& writer) { host->Write(writer); });
}

void ClusterService::EndStreams() {
  impl_->loop->Run([this] {
    const absl::Status why = absl::UnavailableError("the coordinator ends");
    impl_->host->workers.EndAll(why);
    impl_->host->gateways.EndAll(why);
  });
}

}  // namespace penstock::coordinator
