// SPDX-License-Identifier: Apache-2.0
#include "gateway/gateway.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"

namespace penstock::gateway {
namespace {

constexpr Duration kRetryAfter = std::chrono::seconds(1);

std::size_t BytesOf(const Request& request) {
  if (const auto* const text = std::get_if<Request::Text>(&request.prompt)) return text->size();
  if (const auto* const tokens = std::get_if<Request::Tokens>(&request.prompt)) {
    return tokens->size() * sizeof(TokenId);
  }
  std::size_t bytes = 0;
  for (const model::ChatMessage& message : std::get<Request::Chat>(request.prompt)) {
    bytes += message.role.size() + message.content.size();
  }
  return bytes;
}

// The workers of a name may have been given another model.
absl::Status CheckShape(const ModelFront& front, const ClusterModel& model) {
  for (const auto& [name, value] : model.identity) {
    if (name != "model" || value == front.shape()) continue;
    return absl::FailedPreconditionError(absl::StrCat("model '", front.name(), "' is ",
                                                      front.shape(), " at the gateway and ", value,
                                                      " at its workers"));
  }
  return absl::OkStatus();
}

std::vector<std::string> NamesOf(const Gateway::Models& models) {
  std::vector<std::string> names;
  for (const std::shared_ptr<const ModelFront>& model : models) names.push_back(model->name());
  return names;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Make(Models models, const Options& options) {
  if (models.empty()) return absl::InvalidArgumentError("a gateway must serve at least one model");
  for (std::size_t i = 0; i < models.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (models[i]->name() != models[j]->name()) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("two models are called '", models[i]->name(), "'"));
    }
  }
  std::unique_ptr<Gateway> gateway(new Gateway(std::move(models), options));
  ASSIGN_OR_RETURN(gateway->loop_, EpollLoop::Make("gateway"));
  gateway->pool_ =
      std::make_unique<TaskPool>(TaskPool::Options{.threads = options.tokenizer_threads,
                                                   .tasks_max = options.requests_max,
                                                   .bytes_max = options.prompts_bytes_max});
  gateway->tokenize_pool_ = std::make_unique<TaskPool>(
      TaskPool::Options{.threads = 1, .bytes_max = options.prompts_bytes_max});
  return gateway;
}

void Gateway::Attend(const Links& links) {
  // On the loop, so that no answer comes before all is in place.
  loop_->Run([&] {
    CHECK(coordinator_ == nullptr);
    workers_ = links.workers(*loop_, *this);
    coordinator_ = links.coordinator(*loop_, *this);
  });
}

Gateway::Gateway(Models models, const Options& options)
    : options_(options),
      models_(std::move(models)),
      metrics_(NamesOf(models_), options.slo),
      random_(options.seed) {}

Gateway::~Gateway() {
  pool_.reset();
  tokenize_pool_.reset();
  if (loop_ == nullptr) return;
  loop_->Run([this] {
    for (auto& [handle, live] : live_) {
      const absl::Status status = absl::UnavailableError("the gateway ends");
      if (live.relay == nullptr) {
        live.sink->OnEnd(status, {});
      } else if (!live.relay->ended()) {
        live.relay->Cancel(status);
      }
    }
    live_.clear();
    by_id_.clear();
  });
  // They wait for their last calls, which may still post to the loop.
  coordinator_.reset();
  workers_.reset();
}

std::uint64_t Gateway::Draw() const {
  const absl::MutexLock lock(&mutex_);
  return random_();
}

RequestHandle Gateway::Submit(Request request, std::shared_ptr<Sink> sink) {
  const RequestHandle handle{next_handle_++};
  const MonoTime arrived = SteadyClock().Now();
  sink = metrics_.Watch(std::move(sink), request.model, *loop_, arrived);
  if (live_count_.fetch_add(1) >= options_.requests_max) {
    --live_count_;
    loop_->Post([sink = std::move(sink), most = options_.requests_max] {
      sink->OnEnd(absl::ResourceExhaustedError(
                      absl::StrCat("the gateway has ", most, " requests, and no more are allowed")),
                  kRetryAfter);
    });
    return handle;
  }
  loop_->Post([this, handle, sink = std::move(sink)]() mutable {
    live_[handle] = {.sink = std::move(sink), .id = {}, .relay = nullptr};
  });
  const std::size_t bytes = BytesOf(request);
  const auto shared = std::make_shared<Request>(std::move(request));  // std::function copies.
  const bool posted = pool_->Post(bytes, [this, handle, shared, arrived] {
    auto prepared =
        std::make_shared<absl::StatusOr<Prepared>>(PrepareRequest(std::move(*shared), arrived));
    loop_->Post([this, handle, prepared] { Admit(handle, std::move(*prepared)); });
  });
  if (!posted) {
    loop_->Post([this, handle] {
      Drop(handle, absl::ResourceExhaustedError("too many prompts wait to be tokenized"),
           kRetryAfter);
    });
  }
  return handle;
}

absl::StatusOr<Prepared> Gateway::PrepareRequest(Request request, MonoTime arrived) const {
  RETURN_IF_ERROR(CheckRequest(request));
  if (request.end_within.has_value() && *request.end_within <= Duration()) {
    return absl::DeadlineExceededError("the deadline had passed when the request came");
  }
  const Duration end_within =
      std::min(request.end_within.value_or(options_.end_within), kEndWithinMax);
  ASSIGN_OR_RETURN(std::shared_ptr<const ModelFront> model, FindModel(request.model));
  ASSIGN_OR_RETURN(const ModelLimits limits, LimitsOf(*model));
  std::string id = std::move(request.id);
  if (id.empty()) id = absl::StrFormat("r-%016x", Draw());
  // 32 bits: short enough to be typed again.
  ASSIGN_OR_RETURN(Prepared prepared,
                   Prepare(std::move(request), std::move(model), limits, Draw() >> 32, CivilNow()));
  prepared.id = std::move(id);
  prepared.arrived = arrived;
  prepared.deadline = arrived + end_within;
  return prepared;
}

absl::StatusOr<ModelLimits> Gateway::LimitsOf(const ModelFront& model) const {
  const absl::MutexLock lock(&mutex_);
  if (!view_.attending) return absl::UnavailableError("the coordinator cannot be reached");
  const auto it = view_.models.find(model.name());
  if (it == view_.models.end()) {
    return absl::UnavailableError(absl::StrCat("no worker of model '", model.name(), "' is there"));
  }
  RETURN_IF_ERROR(CheckShape(model, it->second));
  if (it->second.limits.block_tokens < 1 || it->second.limits.context_tokens < 1) {
    return absl::UnavailableError(
        absl::StrCat("no decode worker of model '", model.name(), "' is ready"));
  }
  return it->second.limits;
}

void Gateway::Admit(RequestHandle handle, absl::StatusOr<Prepared> prepared) {
  const auto it = live_.find(handle);
  if (it == live_.end()) return;  // Cancelled meanwhile.
  const absl::Status status = prepared.ok() ? CheckUnused(*prepared) : prepared.status();
  if (!status.ok()) {
    return Drop(handle, status, absl::IsUnavailable(status) ? kRetryAfter : Duration());
  }
  Live& live = it->second;
  live.id = prepared->id;
  by_id_[live.id] = handle;
  live.relay = std::make_unique<RelayState>(
      *loop_, *coordinator_, *workers_, *live.sink, *std::move(prepared), options_.relay,
      [this, handle] { loop_->Post([this, handle] { Erase(handle); }); });
  live.relay->Start();
}

// Neither the request's name nor those that its answers may take are in use.
absl::Status Gateway::CheckUnused(const Prepared& prepared) const {
  const auto taken = [](const std::string& id) {
    return absl::AlreadyExistsError(absl::StrCat("a live request is called '", id, "'"));
  };
  if (by_id_.contains(prepared.id)) return taken(prepared.id);
  if (const auto owner = RelayState::OwnerOfLeg(prepared.id);
      owner.has_value() && by_id_.contains(*owner)) {
    return taken(*owner);
  }
  for (std::int32_t i = 0; i < prepared.n; ++i) {
    const std::string leg = RelayState::LegId(prepared.id, static_cast<std::size_t>(i));
    if (by_id_.contains(leg)) return taken(leg);
  }
  return absl::OkStatus();
}

// A request that has no relay.
void Gateway::Drop(RequestHandle handle, const absl::Status& status, Duration retry_after) {
  const auto it = live_.find(handle);
  if (it == live_.end()) return;
  const std::shared_ptr<Sink> sink = std::move(it->second.sink);
  Erase(handle);
  sink->OnEnd(status, retry_after);
}

void Gateway::Erase(RequestHandle handle) {
  const auto it = live_.find(handle);
  if (it == live_.end()) return;
  if (!it->second.id.empty()) by_id_.erase(it->second.id);
  live_.erase(it);
  --live_count_;
}

void Gateway::Cancel(RequestHandle request) {
  loop_->Post([this, request] {
    const auto it = live_.find(request);
    if (it == live_.end()) return;
    const absl::Status why = absl::CancelledError("the client left");
    if (it->second.relay != nullptr) return it->second.relay->Cancel(why);
    Drop(request, why, {});
  });
}

void Gateway::CancelById(std::string request_id, std::function<void(bool found)> done) {
  loop_->Post([this, id = std::move(request_id), done = std::move(done)] {
    const auto it = by_id_.find(id);
    const bool found = it != by_id_.end() && !live_.at(it->second).relay->ended();
    if (found) live_.at(it->second).relay->Cancel(absl::CancelledError("cancelled by its name"));
    done(found);
  });
}

std::vector<Gateway::Model> Gateway::ListModels() const {
  std::vector<Model> models;
  const absl::MutexLock lock(&mutex_);
  for (const auto& front : models_) {
    Model& model = models.emplace_back();
    model.name = front->name();
    model.chat = front->has_chat_template();
    model.context_tokens = front->context_tokens_max();
    const auto it = view_.models.find(front->name());
    if (it == view_.models.end()) continue;
    if (it->second.limits.context_tokens > 0) {
      model.context_tokens = it->second.limits.context_tokens;
    }
    model.ready = view_.attending && it->second.ready && CheckShape(*front, it->second).ok();
    model.identity = it->second.identity;
  }
  return models;
}

bool Gateway::Ready() const {
  return std::ranges::any_of(ListModels(), [](const Model& model) { return model.ready; });
}

absl::StatusOr<std::shared_ptr<const ModelFront>> Gateway::FindModel(
    const std::string& name) const {
  if (name.empty() && models_.size() == 1) return models_[0];
  for (const auto& front : models_) {
    if (front->name() == name) return front;
  }
  const std::string there = absl::StrJoin(
      models_, ", ", [](std::string* out, const auto& front) { out->append(front->name()); });
  if (name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("model must name one of: ", there));
  }
  return absl::NotFoundError(absl::StrCat("no model '", name, "'; there is: ", there));
}

void Gateway::Tokenize(TokenizeQuery query, std::function<void(absl::StatusOr<Tokenized>)> done) {
  std::size_t bytes = 0;
  if (const auto* const text = std::get_if<Request::Text>(&query.text)) bytes = text->size();
  const auto shared = std::make_shared<TokenizeQuery>(std::move(query));
  const bool posted = tokenize_pool_->Post(bytes, [this, shared, done] {
    done([&]() -> absl::StatusOr<Tokenized> {
      ASSIGN_OR_RETURN(const std::shared_ptr<const ModelFront> model, FindModel(shared->model));
      Tokenized result;
      if (const auto* const chat = std::get_if<Request::Chat>(&shared->text)) {
        RETURN_IF_ERROR(CheckMessages(*chat));
        ASSIGN_OR_RETURN(result.ids, model->EncodeChat(*chat, CivilNow()));
      } else {
        const std::string& text = std::get<Request::Text>(shared->text);
        RETURN_IF_ERROR(CheckText("text", text));
        result.ids = model->tokenizer().Encode(
            text,
            {.parse_special = shared->special, .add_bos = !shared->bare, .add_eos = !shared->bare});
      }
      if (!shared->pieces) return result;
      for (const TokenId id : result.ids) {
        result.pieces.push_back(model->tokenizer().Piece(id, /*special=*/true));
      }
      return result;
    }());
  });
  if (!posted) done(absl::ResourceExhaustedError("too many prompts wait to be tokenized"));
}

RelayState* Gateway::Find(const std::string& leg_id) {
  auto it = by_id_.find(leg_id);
  if (it == by_id_.end()) {
    const auto owner = RelayState::OwnerOfLeg(leg_id);
    if (!owner.has_value()) return nullptr;
    it = by_id_.find(*owner);
    if (it == by_id_.end()) return nullptr;
  }
  return live_.at(it->second).relay.get();
}

void Gateway::OnAttending(std::vector<ClusterModel> models) {
  {
    const absl::MutexLock lock(&mutex_);
    view_.attending = true;
    view_.models.clear();
    for (ClusterModel& model : models) view_.models[model.name] = std::move(model);
    for (const auto& front : models_) {
      const auto it = view_.models.find(front->name());
      if (it == view_.models.end()) continue;
      if (const absl::Status status = CheckShape(*front, it->second); !status.ok()) {
        LOG_ERROR("model differs", {{"what", ToStd(status.message())}});
      }
    }
  }
  for (auto& [handle, live] : live_) {
    if (live.relay != nullptr) live.relay->OnAttending();
  }
}

void Gateway::OnDetached() {
  {
    const absl::MutexLock lock(&mutex_);
    view_.attending = false;
  }
  for (auto& [handle, live] : live_) {
    if (live.relay != nullptr) live.relay->OnDetached();
  }
}

void Gateway::OnRouted(const std::string& request_id, const absl::Status& status,
                       Duration retry_after) {
  if (RelayState* const relay = Find(request_id)) relay->OnRouted(request_id, status, retry_after);
}

// What nobody waits for (any more) is cancelled: it may be of an earlier life of this gateway.
void Gateway::OnPlanned(const Plan& plan) {
  RelayState* const relay = Find(plan.attempt.request_id);
  if (relay == nullptr) return coordinator_->Cancel(plan.attempt.request_id);
  relay->OnPlanned(plan);
}

void Gateway::OnLost(const Attempt& attempt) {
  RelayState* const relay = Find(attempt.request_id);
  if (relay == nullptr) return coordinator_->Cancel(attempt.request_id);
  relay->OnLost(attempt);
}

void Gateway::OnEnded(const std::string& request_id, const absl::Status& status,
                      Duration retry_after) {
  if (RelayState* const relay = Find(request_id)) relay->OnEnded(request_id, status, retry_after);
}

void Gateway::OnStep(const Attempt& attempt, DecodeStep step) {
  if (RelayState* const relay = Find(attempt.request_id)) relay->OnStep(attempt, std::move(step));
}

void Gateway::OnDecodeEnd(const Attempt& attempt, const absl::Status& status) {
  if (RelayState* const relay = Find(attempt.request_id)) relay->OnDecodeEnd(attempt, status);
}

}  // namespace penstock::gateway
