// SPDX-License-Identifier: Apache-2.0
// For tests: a coordinator and workers without I/O, that answer one relay by a known rule, late,
// twice, or not at all, as a seed wants it. Holds what the relay may never do: CHECKs that a prompt
// is what was emitted, and counts what is still open.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/virtual_loop.h"
#include "gateway/links.h"
#include "gateway/relay_state.h"

namespace penstock::gateway {

// What a client would read.
class RecordingSink final : public Sink {
 public:
  struct Choice {
    std::vector<TokenId> tokens = {};
    std::string text = {};
    std::int32_t finished = 0;
    FinishReason reason = FinishReason::kStop;
    std::string stopped_by = {};

    bool operator==(const Choice&) const = default;
  };
  explicit RecordingSink(std::size_t events_max = ~std::size_t{0}) : events_max_(events_max) {}

  bool OnEvent(Event event) override;
  void OnEnd(const absl::Status& status, Duration retry_after) override;

  std::map<std::int32_t, Choice> choices;
  std::int32_t started = 0;
  std::int32_t usages = 0;
  Usage usage;
  std::int32_t ends = 0;
  absl::Status status;
  Duration retry_after{};

 private:
  const std::size_t events_max_;
  std::size_t events_ = 0;
};

// The next token of a choice whose prompt and answer so far are `tokens`; every 23rd or so ends it.
TokenId NextToken(std::span<const TokenId> tokens, std::int32_t choice, std::uint64_t seed);
bool EndsAnswer(TokenId token);
// All that a choice would be without any trouble.
RecordingSink::Choice Alone(const Prepared& request, std::int32_t choice);

class RelayWorld final : public Coordinator, public Workers {
 public:
  struct Faults {
    double broken = 0;     // Decode breaks, per step.
    double lost = 0;       // Lost, per step.
    double replanned = 0;  // The coordinator plans anew by itself, per step.
    double repeated = 0;   // A message comes twice.
    double detached = 0;   // The coordinator goes away for a moment, per step.
    double forgotten = 0;  // The coordinator has ended the request already, per Route after a loss.
    double late = 0;       // A wrong message of an attempt that was left, per closing.
  };
  RelayWorld(VirtualLoop& loop, std::uint64_t seed, Faults faults)
      : loop_(loop), random_(seed), faults_(faults) {}

  void Serve(RelayState* relay) { relay_ = relay; }
  void set_faults(const Faults& faults) { faults_ = faults; }

  bool attending() const override { return attending_; }
  void Route(const RouteOrder& order) override;
  void Cancel(const std::string& request_id) override;
  void Decode(const std::string& endpoint, const DecodeOrder& order, MonoTime deadline) override;
  void Prefill(const std::string& endpoint, const PrefillOrder& order) override;
  void StopChoice(const std::string& endpoint, const Attempt& attempt,
                  std::int32_t choice) override;
  void Cancel(const Attempt& attempt) override;

  // What is neither ended nor cancelled.
  std::size_t open_calls() const { return streams_.size(); }
  std::size_t live_requests() const;
  std::int32_t losses() const { return losses_; }
  const std::vector<std::string>& log() const { return log_; }

 private:
  struct Request {
    std::uint32_t attempt = 0;
    std::uint32_t prompt_tokens = 0;  // As planned for.
    bool ended = false;
  };
  struct Stream {
    DecodeOrder order;
    std::vector<std::vector<TokenId>> tokens;  // Of each choice, with the prompt.
    std::vector<bool> finished;
  };
  bool Chance(double p) { return std::bernoulli_distribution(p)(random_); }
  void Later(std::function<void(RelayState&)> task);
  void PlanLater(const std::string& id);
  void Step(const Attempt& attempt);
  bool Trouble(const Attempt& attempt);
  void SayLate(const Attempt& attempt);
  void Detach();

  VirtualLoop& loop_;
  std::mt19937_64 random_;
  Faults faults_;
  RelayState* relay_ = nullptr;
  bool attending_ = true;
  std::map<std::string, Request> requests_;
  std::map<Attempt, Stream> streams_;
  std::int32_t losses_ = 0;
  std::vector<std::string> log_;
};

}  // namespace penstock::gateway
