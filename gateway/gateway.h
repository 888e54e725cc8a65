// SPDX-License-Identifier: Apache-2.0
// The clients' edge of a cluster, whatever they speak: requests in, events out (events.h). It
// checks, tokenizes and hashes a prompt once, asks the coordinator for workers and relays their
// tokens; when one is lost, the stream goes on (relay_state.h).
//
//   gateway->Submit(request, sink)  ...  sink: Started, Delta..., Finished..., Usage, then OnEnd
//
// All calls from any thread; none blocks. What is called back comes from the gateway's own threads
// and must not block either. Bounded: requests_max live, and prompts_bytes_max of prompts that wait
// to be tokenized; beyond, RESOURCE_EXHAUSTED.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/epoll_loop.h"
#include "base/task_pool.h"
#include "gateway/events.h"
#include "gateway/gateway_metrics.h"
#include "gateway/links.h"
#include "gateway/model_front.h"
#include "gateway/relay_state.h"
#include "gateway/request.h"

namespace penstock::gateway {

enum class RequestHandle : std::uint64_t {};

class Gateway final : private CoordinatorListener, private WorkersListener {
 public:
  struct Options {
    std::size_t requests_max = 8192;
    std::size_t prompts_bytes_max = std::size_t{256} << 20;
    int tokenizer_threads = 2;
    Duration end_within = std::chrono::hours(1);  // Where the client says nothing.
    std::uint64_t seed = 0;  // Of the seeds and ids that it draws: another in every process.
    Slo slo = {};            // What its metrics call good.
    RelayState::Options relay = {};
  };
  // How it reaches the others; given the gateway's loop and who is to hear the answers.
  struct Links {
    std::function<std::unique_ptr<Coordinator>(EpollLoop&, CoordinatorListener&)> coordinator;
    std::function<std::unique_ptr<Workers>(EpollLoop&, WorkersListener&)> workers;
  };
  using Models = std::vector<std::shared_ptr<const ModelFront>>;

  // INVALID_ARGUMENT: no model, or two of one name. As EpollLoop::Make. Until Attend, requests are
  // UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<Gateway>> Make(Models models, const Options& options);
  // Goes to the coordinator. Once.
  void Attend(const Links& links);
  // Ends what still runs with UNAVAILABLE.
  ~Gateway() override;

  // Errors, all through the sink's OnEnd: those of CheckRequest and Prepare; NOT_FOUND: no such
  // model, listing those there are; ALREADY_EXISTS: a live request has that id; UNAVAILABLE: no
  // coordinator or no worker that could take it; RESOURCE_EXHAUSTED: too much is here or there
  // already; DEADLINE_EXCEEDED. `sink` is kept until its OnEnd has returned; shared, since client
  // and gateway end in any order.
  RequestHandle Submit(Request request, std::shared_ptr<Sink> sink);
  // The client left: all workers stop within a step. The sink hears CANCELLED, unless it had ended.
  void Cancel(RequestHandle request);
  // Likewise by name; `done` hears whether there was one.
  void CancelById(std::string request_id, std::function<void(bool found)> done);

  struct Model {
    std::string name;
    std::int32_t context_tokens = 0;  // Of prompt and answer together, on its workers.
    bool ready = false;               // A request could be placed now.
    bool chat = false;                // It has a chat template.
    std::vector<std::pair<std::string, std::string>> identity;  // Of its workers; none: no workers.
  };
  std::vector<Model> ListModels() const;
  // Some model could take a request.
  bool Ready() const;
  // By name; empty where there is one alone. NOT_FOUND lists what there is.
  absl::StatusOr<std::shared_ptr<const ModelFront>> FindModel(const std::string& name) const;

  struct TokenizeQuery {
    std::string model;
    std::variant<Request::Text, Request::Chat> text;
    bool special = true;  // Control tokens in a text are tokens.
    bool bare = false;    // Without the tokens that the model wants around a text.
    bool pieces = false;
  };
  struct Tokenized {
    std::vector<TokenId> ids;
    std::vector<std::string> pieces;  // When asked for.
  };
  void Tokenize(TokenizeQuery query, std::function<void(absl::StatusOr<Tokenized>)> done);

  EpollLoop& loop() { return *loop_; }
  std::size_t requests() const { return live_count_; }
  const GatewayMetrics& metrics() const { return metrics_; }

 private:
  // Until its relay begins, a request is being prepared.
  struct Live {
    std::shared_ptr<Sink> sink;
    std::string id;  // Set with the relay.
    std::unique_ptr<RelayState> relay;
  };
  struct ClusterView {
    bool attending = false;
    std::map<std::string, ClusterModel> models;
  };

  Gateway(Models models, const Options& options);

  absl::StatusOr<Prepared> PrepareRequest(Request request, MonoTime arrived) const;
  absl::StatusOr<ModelLimits> LimitsOf(const ModelFront& model) const;
  void Admit(RequestHandle handle, absl::StatusOr<Prepared> prepared);
  absl::Status CheckUnused(const Prepared& prepared) const;
  void Drop(RequestHandle handle, const absl::Status& status, Duration retry_after);
  void Erase(RequestHandle handle);
  RelayState* Find(const std::string& leg_id);
  std::uint64_t Draw() const;

  void OnAttending(std::vector<ClusterModel> models) override;
  void OnDetached() override;
  void OnRouted(const std::string& request_id, const absl::Status& status,
                Duration retry_after) override;
  void OnPlanned(const Plan& plan) override;
  void OnLost(const Attempt& attempt) override;
  void OnEnded(const std::string& request_id, const absl::Status& status,
               Duration retry_after) override;
  void OnStep(const Attempt& attempt, DecodeStep step) override;
  void OnDecodeEnd(const Attempt& attempt, const absl::Status& status) override;

  const Options options_;
  const Models models_;
  GatewayMetrics metrics_;
  std::atomic<std::uint64_t> next_handle_ = 1;
  std::atomic<std::size_t> live_count_ = 0;
  mutable absl::Mutex mutex_;
  ClusterView view_ ABSL_GUARDED_BY(mutex_);
  mutable std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<EpollLoop> loop_;
  // On the loop alone.
  std::map<RequestHandle, Live> live_;
  std::map<std::string, RequestHandle> by_id_;
  // Their answers come on the loop.
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<Workers> workers_;
  std::unique_ptr<TaskPool> pool_;
  std::unique_ptr<TaskPool> tokenize_pool_;  // Long texts there hold up no request.
};

}  // namespace penstock::gateway
