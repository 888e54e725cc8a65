// SPDX-License-Identifier: Apache-2.0
// The coordinator and the workers as a gateway sees them, without gRPC: what it sends them, and
// what it hears. All on the gateway's loop; answers come later, never from inside a call.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/attempt.h"
#include "base/key.h"
#include "base/time.h"
#include "gateway/events.h"
#include "gateway/request.h"

namespace penstock::gateway {

struct RouteOrder {
  std::string request_id = {};
  std::string model = {};
  std::vector<Chain> chains = {};
  std::uint32_t prompt_tokens = 0;  // With those emitted, after a loss.
  std::uint32_t output_tokens_max = 0;
  std::uint32_t tenant = 0;
  std::int32_t priority = 0;
  LossClass reuse = LossClass::kExact;
  Duration end_within = {};
  std::uint32_t lost_attempt = 0;  // 0: a new request.
};

// Memory is reserved: the prompt goes to both workers, under this attempt.
struct Plan {
  Attempt attempt = {};
  std::string decode_name = {};
  std::string decode_endpoint = {};
  std::string prefill_name = {};  // The decode worker's where it prefills for itself.
  std::string prefill_endpoint = {};
  std::uint32_t prompt_tokens = 0;  // That were planned for.
  std::uint32_t reused_tokens = 0;  // As predicted, of the prefill worker.
  Duration prefill_within = {};

  bool local() const { return prefill_name == decode_name; }
};

// What the cluster says of a model.
struct ClusterModel {
  std::string name = {};
  bool ready = false;  // A request could be placed.
  ModelLimits limits = {};
  std::vector<std::pair<std::string, std::string>> identity = {};
};

class CoordinatorListener {
 public:
  virtual ~CoordinatorListener() = default;
  // The stream stands, with these models; again whenever they change.
  virtual void OnAttending(std::vector<ClusterModel> models) = 0;
  // It has broken; it will be opened again.
  virtual void OnDetached() = 0;
  virtual void OnRouted(const std::string& request_id, const absl::Status& status,
                        Duration retry_after) = 0;
  virtual void OnPlanned(const Plan& plan) = 0;
  virtual void OnLost(const Attempt& attempt) = 0;
  virtual void OnEnded(const std::string& request_id, const absl::Status& status,
                       Duration retry_after) = 0;
};

class Coordinator {
 public:
  virtual ~Coordinator() = default;
  // Answered with OnRouted; while there is no coordinator, with UNAVAILABLE at once.
  virtual void Route(const RouteOrder& order) = 0;
  virtual void Cancel(const std::string& request_id) = 0;
  virtual bool attending() const = 0;
};

struct DecodeOrder {
  Attempt attempt = {};
  std::vector<TokenId> prompt = {};  // With what earlier attempts emitted.
  std::int32_t emitted_tokens = 0;   // So many of it.
  SamplingParams sampling = {};      // With a seed.
  std::int32_t n = 1;
  std::int32_t first_choice = 0;
  std::int32_t max_tokens = 0;  // To come, of each answer.
  std::vector<TokenId> stop_tokens = {};
  bool ignore_eos = false;
  std::int32_t priority = 0;
  Chain root = {};  // Of its chains.
  std::uint32_t tenant = 0;
};

struct PrefillOrder {
  Attempt attempt = {};
  std::span<const TokenId> tokens = {};  // The prompt but for its last; used within the call alone.
  Chain root = {};
  std::uint32_t tenant = 0;
  std::int32_t priority = 0;
  Duration timeout = {};
};

// What one step of a decode worker made of one answer.
struct Output {
  enum class Finish : std::uint8_t { kGoesOn, kStop, kLength, kCancelled, kError };

  std::int32_t choice = 0;  // 0 is the attempt's first one.
  std::optional<SampledToken> token = {};
  Finish finish = Finish::kGoesOn;
};
struct DecodeStep {
  std::vector<Output> outputs = {};
  std::int64_t sampled_unix_ns = 0;     // By the worker's clock.
  std::int32_t reused_tokens = 0;       // With the last.
  std::optional<Handoff> handoff = {};  // Likewise, where there was one.
};

class WorkersListener {
 public:
  virtual ~WorkersListener() = default;
  virtual void OnStep(const Attempt& attempt, DecodeStep step) = 0;
  // Once, unless the calls were cancelled. OK: the answers are complete. Else what the worker said,
  // or UNAVAILABLE where it cannot be reached.
  virtual void OnDecodeEnd(const Attempt& attempt, const absl::Status& status) = 0;
};

class Workers {
 public:
  virtual ~Workers() = default;
  // `deadline` is the call's: nothing outlives it.
  virtual void Decode(const std::string& endpoint, const DecodeOrder& order, MonoTime deadline) = 0;
  // How it ends is the coordinator's to know.
  virtual void Prefill(const std::string& endpoint, const PrefillOrder& order) = 0;
  virtual void StopChoice(const std::string& endpoint, const Attempt& attempt,
                          std::int32_t choice) = 0;
  // Ends all calls of an attempt; nothing more is heard of them. Unknown ones are ignored.
  virtual void Cancel(const Attempt& attempt) = 0;
};

}  // namespace penstock::gateway
