// SPDX-License-Identifier: Apache-2.0
#include "coordinator/coordinator_service.h"

#include <atomic>
#include <future>
#include <utility>

#include "base/epoll_loop.h"
#include "base/status.h"
#include "coordinator/host_service.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/etcd_client.h"
#include "rpc/reply.h"

namespace penstock::coordinator {
namespace {

// A store that does not answer lets the lease end by itself.
constexpr std::chrono::seconds kResignWithin(2);

class Service final : public v1::Cluster::CallbackService {
 public:
  Service(EpollLoop& loop, Host& host, const ClusterService::Options& options)
      : loop_(loop),
        host_(host),
        first_within_(options.first_within),
        end_within_(options.end_within) {}

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::WorkerCommand>* Join(
      grpc::CallbackServerContext* context) override {
    return Accept<WorkerStream, v1::WorkerMessage>(context);
  }
  grpc::ServerBidiReactor<v1::GatewayMessage, v1::GatewayEvent>* Attend(
      grpc::CallbackServerContext* context) override {
    return Accept<GatewayStream, v1::GatewayMessage>(context);
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
  template <typename Stream, typename Message>
  Stream* Accept(grpc::CallbackServerContext* context) {
    const std::uint64_t id = ++streams_;
    const auto stream = Stream::Make(
        context, loop_, {.first_within = first_within_, .end_within = end_within_},
        {.on_message = [&host = host_, id](const Message& message) { host.OnMessage(id, message); },
         .on_closed = [&host = host_,
                       id] { host.OnClosed(id, static_cast<const Message*>(nullptr)); }});
    // Before its first message: gRPC reads none before it has the stream.
    loop_.Post([&host = host_, id, stream] { host.Open(id, stream); });
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
  const Duration first_within_;
  const Duration end_within_;
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
  RETURN_IF_ERROR(Coordinator::Make(options.coordinator).status());
  ASSIGN_OR_RETURN(impl->loop, EpollLoop::Make("coordinator"));
  impl->loop->Run([&] {
    std::unique_ptr<rpc::Etcd> etcd;
    if (!options.etcd.empty()) {
      etcd = std::make_unique<rpc::EtcdClient>(*impl->loop,
                                               rpc::EtcdClient::Options{.endpoints = options.etcd});
    }
    impl->host = std::make_unique<Host>(*impl->loop, options, std::move(etcd));
  });
  impl->service = std::make_unique<Service>(*impl->loop, *impl->host, options);
  return std::unique_ptr<ClusterService>(new ClusterService(std::move(impl)));
}

ClusterService::ClusterService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ClusterService::~ClusterService() = default;

grpc::Service* ClusterService::service() { return impl_->service.get(); }

void ClusterService::AddMetrics(Metrics& metrics) {
  metrics.AddOn(*impl_->loop,
                [host = impl_->host.get()](MetricsWriter& writer) { host->Write(writer); });
}

void ClusterService::Begin(const std::string& name, const std::string& address,
                           std::function<void(bool leading)> on_leading) {
  impl_->loop->Run([&] { impl_->host->Begin(name, address, std::move(on_leading)); });
}

void ClusterService::End() {
  const auto resigned = std::make_shared<std::promise<void>>();  // Shared with who waits no longer.
  impl_->loop->Run([&] { impl_->host->End([resigned] { resigned->set_value(); }); });
  resigned->get_future().wait_for(kResignWithin);
}

}  // namespace penstock::coordinator
