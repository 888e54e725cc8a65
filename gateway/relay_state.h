// SPDX-License-Identifier: Apache-2.0
// One client's request in the gateway, from its route to its end: tokens of decode workers become
// the client's stream, and go on where they were when a worker is lost.
//
// To the coordinator it is one request; after a loss in mid-answer each unfinished one of several
// answers goes on as a request of its own, ID.0, ID.1, ..., since their tokens differ. The states
// of each of these, here called legs:
//
//   state      event                               next
//   -          Start, a loss of several answers    routing: Route is asked
//   routing    Routed: OK                          routing: a plan will come
//              Routed: an error                    ended with it, all legs
//              Routed: it has ended there          ended; its answers go on as new legs
//              no answer to Route in time          ended: UNAVAILABLE, all legs
//              no coordinator, nothing emitted     ended: UNAVAILABLE, all legs
//              no coordinator, in mid-answer       routing: Route again once there is one, not for
//                                                  longer than resume_timeout
//   any        Planned, a newer attempt            planned: Decode, Prefill; older calls are ended
//              Planned, but tokens came since      routing: Route with what was emitted
//   planned    tokens                              streaming
//   planned,   tokens                              the same: kept and told, each once
//   streaming  the last answer is complete         ended, once the worker has said all
//              a stop string, others go on         the same: StopChoice
//              a stop string, the last one         ended: both calls and the request are cancelled
//              Decode: the request is wrong        ended with it, all legs
//              Decode breaks, or Lost              one answer, or nothing emitted: routing, with
//                                                  what was emitted; else ended, and new legs
//   any        Ended: an error                     ended with it, all legs
//              the client left, reads too slowly,
//              or its deadline passed              ended, all legs: cancelled at the coordinator,
//                                                  all calls at once
//
// All else is late or repeated, and changes nothing: messages of an attempt that is not the newest,
// Ended with OK (the stream tells), all after the end.
//
// On the loop's thread. No I/O, clock or threads of its own: the simulator runs this very code.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/attempt.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/spans.h"
#include "base/time.h"
#include "gateway/events.h"
#include "gateway/links.h"
#include "gateway/request.h"
#include "model/text_stream.h"

namespace penstock::gateway {

class RelayState {
 public:
  struct Options {
    Duration route_timeout = std::chrono::seconds(5);    // For an answer to Route.
    Duration resume_timeout = std::chrono::seconds(10);  // For a coordinator, in mid-answer.
    Duration retry_pause = std::chrono::milliseconds(250);
    std::int32_t failures_max = 8;  // In a row without a new token.
    SpanRing* spans = nullptr;      // Null: not traced. Outlives the relay.
  };

  // All of it outlives the relay. `over` is called once, after the sink's OnEnd; the relay is then
  // to be destroyed, but not from inside.
  RelayState(Loop& loop, Coordinator& coordinator, Workers& workers, Sink& sink, Prepared request,
             Options options, std::function<void()> over);
  ~RelayState();
  RelayState(const RelayState&) = delete;
  RelayState& operator=(const RelayState&) = delete;

  void Start();
  // The client left, or somebody ends its request.
  void Cancel(const absl::Status& why);

  // From the coordinator, of any of this request's legs.
  void OnAttending();
  void OnDetached();
  void OnRouted(const std::string& id, const absl::Status& status, Duration retry_after);
  void OnPlanned(const Plan& plan);
  void OnLost(const Attempt& attempt);
  void OnEnded(const std::string& id, const absl::Status& status, Duration retry_after);
  // From workers.
  void OnStep(const Attempt& attempt, DecodeStep step);
  void OnDecodeEnd(const Attempt& attempt, const absl::Status& status);

  const Prepared& request() const { return request_; }
  bool ended() const { return ended_; }

  // "ID.3" is a leg of "ID": that; else nothing.
  static std::optional<std::string> OwnerOfLeg(const std::string& id);
  static std::string LegId(const std::string& id, std::size_t choice);

 private:
  enum class State : std::uint8_t { kRouting, kPlanned, kStreaming, kEnded };
  struct Choice {
    std::vector<TokenId> emitted;
    std::unique_ptr<model::TextStream> text;  // None where nobody wants any.
    bool finished = false;
  };
  struct Leg {
    std::string id;
    State state = State::kRouting;
    std::vector<std::size_t> choices;  // That its calls answer, finished ones too.
    std::vector<Chain> chains;
    std::uint32_t attempt = 0;  // The newest that is known.
    Plan plan;                  // Of it; valid while calls are open.
    bool answered = false;      // Route was.
    bool outage = false;        // There was no coordinator since the last loss.
    bool over = false;          // The coordinator has ended it.
    bool fresh = false;         // Nothing was emitted when the calls were opened.
    bool cut = false;           // An answer of theirs met a stop string.
    std::int32_t failures = 0;  // In a row without a token.
    MonoTime resume_by;         // Of a leg in mid-answer.
    std::optional<Loop::TimerId> timer;
    // Of the newest attempt; for traces.
    MonoTime asked = {};
    MonoTime planned = {};
    MonoTime first_token = {};
    MonoTime last_token = {};
    std::uint32_t tokens = 0;
  };

  Leg& AddLeg(std::string id, std::vector<std::size_t> choices);
  Leg* Find(const std::string& id);
  // The leg whose calls of just this attempt are open.
  Leg* FindOpen(const Attempt& attempt);
  bool IsComplete(const Leg& leg) const;
  bool HasEmitted(const Leg& leg) const;
  bool MayRetry(const Leg& leg, const absl::Status& status, Duration pause) const;
  std::vector<TokenId> TokensOf(const Leg& leg) const;

  void Route(Leg& leg);
  void AwaitCoordinator(Leg& leg);
  void Open(Leg& leg, const Plan& plan);
  void CloseCalls(Leg& leg);
  void Recover(Leg& leg, const absl::Status& why);
  void Split(Leg& leg, const absl::Status& why);
  void EndLeg(Leg& leg);
  void Arm(Leg& leg, MonoTime when, std::function<void()> task);
  void Disarm(Leg& leg);

  void Take(Leg& leg, Output output, std::int64_t sampled_unix_ns);
  void Finish(Leg& leg, std::size_t choice, FinishReason reason, bool by_text);
  void AddPieces(SampledToken& token) const;
  bool TellStarted();
  bool Tell(Event event);
  // What a span of a leg begins with.
  Span SpanOf(SpanName name, const Leg& leg, MonoTime begin, MonoTime end) const;
  void TracePlanned(Leg& leg, const Plan& plan);
  void TraceToken(Leg& leg);
  void TraceStream(Leg& leg);  // Once for each attempt that made tokens.
  void TraceRequest() const;
  void End(const absl::Status& status, Duration retry_after = {});

  Loop& loop_;
  Coordinator& coordinator_;
  Workers& workers_;
  Sink& sink_;
  const Prepared request_;
  const Options options_;
  const std::function<void()> over_;
  std::map<std::string, Leg> legs_;  // Ended ones stay.
  std::vector<Choice> choices_;
  std::optional<Loop::TimerId> deadline_timer_;
  std::optional<MonoTime> first_token_;
  Usage usage_;
  bool started_ = false;
  bool ended_ = false;
};

}  // namespace penstock::gateway
