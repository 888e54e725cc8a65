// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_target_client.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock_id.h"
#include "base/status.h"
#include "grpc/support/time.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/inference.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/convert.h"

namespace penstock::cli {
namespace {

gpr_timespec Within(Duration duration) {
  return gpr_time_from_nanos(duration.count(), GPR_TIMESPAN);
}

// One request. gRPC calls it one call at a time; OnDone is the last.
class Call final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Call(MonoTime begin, std::function<void()> over) : begin_(begin), over_(std::move(over)) {}

  void Start(v1::Inference::Stub& stub, Duration timeout) {
    context_.set_deadline(Within(timeout));
    record.sent = SteadyClock().Now() - begin_;
    stub.async()->Generate(&context_, &request, this);
    StartRead(&response_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

  v1::GenerateRequest request;
  BenchRecord record;  // Once over.

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.has_delta()) {
      OnTokens(response_.delta());
    } else if (response_.has_usage()) {
      record.prompt_tokens = response_.usage().prompt_tokens();
      record.cached_tokens = response_.usage().cached_tokens();
      record.attempts = response_.usage().attempts();
    }
    StartRead(&response_);
  }
  void OnTokens(const v1::GenerateResponse::Delta& delta) {
    const int tokens = delta.tokens_size();
    if (tokens == 0) return;
    if (delta.sampled_unix_ns() > 0) {
      record.relays.push_back(1e-9F * static_cast<float>(UnixNanos() - delta.sampled_unix_ns()));
    }
    const Duration now = SteadyClock().Now() - begin_;
    if (!record.first) {
      record.first = now;
    } else {
      record.gaps.push_back(static_cast<float>(ToSeconds(now - record.last)));
    }
    for (int i = 1; i < tokens; ++i) record.gaps.push_back(0);
    record.last = now;
    record.output_tokens += tokens;
  }
  void OnDone(const grpc::Status& status) override {
    const absl::Status why = rpc::FromGrpc(status);
    record.end = SteadyClock().Now() - begin_;
    record.code = absl::AsciiStrToLower(absl::StatusCodeToString(why.code()));
    record.message = std::string(why.message());
    const std::function<void()> over = std::move(over_);
    over();  // It may destroy this.
  }

  const MonoTime begin_;
  std::function<void()> over_;
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
};

class Target final : public BenchTarget {
 public:
  Target(Loop& loop, const BenchTargetOptions& options)
      : loop_(loop),
        options_(options),
        stub_(v1::Inference::NewStub(rpc::MakeChannel(options.server))) {}

  void Send(const BenchRequest& request, MonoTime begin,
            std::function<void(BenchRecord)> done) override {
    const std::uint64_t id = ++next_;
    auto call = std::make_unique<Call>(begin, [this, id, done = std::move(done)] {
      loop_.Post([this, id, done] {
        const std::unique_ptr<Call> ended = std::move(calls_.at(id));
        calls_.erase(id);
        done(std::move(ended->record));
      });
    });
    Fill(request, id, call->request);
    Call& started = *(calls_[id] = std::move(call));
    started.Start(*stub_, options_.timeout);
  }
  void CancelAll() override {
    for (const auto& [id, call] : calls_) call->Cancel();
  }

 private:
  void Fill(const BenchRequest& from, std::uint64_t id, v1::GenerateRequest& to) const {
    to.set_model(options_.model);
    const std::vector<TokenId> tokens = MakePrompt(from, options_.vocab);
    to.mutable_tokens()->mutable_ids()->Add(tokens.begin(), tokens.end());
    v1::GenerateOptions& options = *to.mutable_options();
    options.mutable_sampling()->set_temperature(options_.temperature);
    options.mutable_sampling()->set_seed(id);
    options.set_max_tokens(from.output_tokens);
    options.set_ignore_eos(true);
    options.set_tokens_only(true);
    options.set_tenant(options_.tenant);
  }

  Loop& loop_;
  const BenchTargetOptions options_;
  const std::unique_ptr<v1::Inference::Stub> stub_;
  std::uint64_t next_ = 0;
  std::map<std::uint64_t, std::unique_ptr<Call>> calls_;
};

}  // namespace

std::unique_ptr<BenchTarget> MakeBenchTarget(Loop& loop, const BenchTargetOptions& options) {
  return std::make_unique<Target>(loop, options);
}

absl::StatusOr<std::string> FindBenchModel(const BenchTargetOptions& options) {
  const auto stub = v1::Inference::NewStub(rpc::MakeChannel(options.server));
  grpc::ClientContext context;
  context.set_deadline(Within(std::chrono::seconds(10)));
  context.set_wait_for_ready(true);
  v1::ListModelsResponse response;
  const grpc::Status status = stub->ListModels(&context, v1::ListModelsRequest(), &response);
  if (!status.ok()) {
    return absl::UnavailableError(
        absl::StrCat("no gateway answers at ", options.server, ": ", status.error_message()));
  }
  std::vector<std::string> names;
  for (const auto& model : response.models()) {
    names.push_back(model.name());
    const bool meant =
        options.model.empty() ? response.models_size() == 1 : model.name() == options.model;
    if (!meant) continue;
    if (model.ready()) return model.name();
    return absl::FailedPreconditionError(
        absl::StrCat("model '", model.name(), "' is not ready: no worker could take a request"));
  }
  return absl::NotFoundError(absl::StrCat("which model? ", options.server, " has ",
                                          absl::StrJoin(names, ", "), "; --model says"));
}

}  // namespace penstock::cli
