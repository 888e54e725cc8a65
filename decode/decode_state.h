// SPDX-License-Identifier: Apache-2.0
// What a decode worker knows of its requests: memory reserved for the coordinator, KV that arrives,
// answers that stream to gateways. It decides; an engine computes, HandoffReceiver reads the KV.
//
// An attempt, from Reserve to its end:
//
//   state      event                               next
//   -          Reserve                             reserving: the engine is asked for memory
//   reserving  the engine has it                   filling; the grant is answered
//   reserving  it has not                          ended: RESOURCE_EXHAUSTED is answered
//   reserving  it has, of one with sources that    importing; the grant is answered
//              prefills here
//   importing  the engine is to begin: what can    filled
//              be had is in the pool, or comes
//              beside it
//   filling    all KV is there and verified        filled
//              (some of it fetched from the store)
//   filling    the handoff failed                  ended: its reason; what came is left for reuse
//   filled     Decode (it may come before)         running
//   running    tokens                              running
//   running    the last answer's end               ended: OK
//   any        Release                             ended: CANCELLED
//   any        the deadline, until it runs         ended: DEADLINE_EXCEEDED
//
// An attempt that prefills here (Reserve with local) has nothing to fill: it goes from reserving,
// maybe over importing, to filled. Memory that a peer's bytes may still land in is given back only
// after the last read ended.
//
// On the loop's thread. No I/O, clock or threads of its own: the simulator runs this very code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/attempt.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/loss_class.h"
#include "base/spans.h"
#include "base/time.h"
#include "kvstore/client/fetcher.h"
#include "transfer/handoff_receiver.h"

namespace penstock::decode {

// An attempt at the engine; never used twice.
enum class JobId : std::uint64_t {};

// Memory for one prompt, as the engine took it.
struct Room {
  std::int32_t reused_tokens = 0;
  std::vector<transfer::HandoffReceiver::Target::Group> groups = {};
  std::size_t bytes = 0;  // Of all of it.
};

// The engine as this state sees it. `Work` is what a gateway asks (prompt, sampling), passed
// through untouched. Answers come later, never from inside.
class DecodeEngine {
 public:
  class Work {
   public:
    virtual ~Work() = default;
  };
  // What the engine made of it in a step, passed through just so.
  class Tokens {
   public:
    virtual ~Tokens() = default;
    // How many; for traces.
    virtual std::int32_t count() const { return 1; }
  };

  virtual ~DecodeEngine() = default;
  // Blocks are reused up to a loss of `accepts`, and are `tenant`'s.
  virtual void Reserve(JobId job, std::int32_t tokens, std::vector<Chain> chains, LossClass accepts,
                       std::uint32_t tenant, std::function<void(absl::StatusOr<Room>)> done) = 0;
  // Nothing writes there any more; the first blocks_valid blocks are good. What came is of `came`.
  virtual void EndReservation(JobId job, std::int32_t blocks_valid, const Lineage& came) = 0;
  // Of the job's room all but the blocks from host_first up to host_end came to on_device, not to
  // slabs; before Run and EndReservation, where it is so.
  virtual void CameOnDevice(JobId job, std::int32_t host_first, std::int32_t host_end) = 0;
  // Runs `work` on the reservation, or, where there is none, from its beginning, reusing blocks up
  // to `accepts`. Tokens come by OnTokens, refusals by OnEnd.
  virtual void Run(JobId job, std::unique_ptr<Work> work, LossClass accepts,
                   const Lineage& came) = 0;
  virtual void Cancel(JobId job) = 0;
  // Brings leading blocks of the job's prompt into the pool, as far as the sources have them, to be
  // found there by Run, which is to begin at `ready`: what comes later comes beside it. Both are
  // called once, `done` when no more comes; neither after EndImport, which is the end of each, and
  // lets go of what came but is not held by others.
  virtual void Import(JobId job, std::vector<Chain> chains,
                      std::vector<kvstore::Fetcher::Source> sources, LossClass accepts,
                      std::uint32_t tenant, std::function<void()> ready,
                      std::function<void(const kvstore::Fetcher::Outcome&)> done) = 0;
  virtual void EndImport(JobId job) = 0;
  // Brings blocks of the job's room, from first_block on, as far as the sources have them; mapped
  // ones take the place of memory there.
  virtual void Fetch(JobId job, std::vector<transfer::HandoffReceiver::Target::Group> groups,
                     std::vector<Chain> chains, std::int32_t first_block,
                     std::vector<kvstore::Fetcher::Source> sources,
                     std::function<void(const kvstore::Fetcher::Outcome&)> done) = 0;
  // Ends that early; `done` is still called.
  virtual void CancelFetch(JobId job) = 0;
};

// What a handoff that failed means for its attempt. What a peer did wrong is not the request's
// fault, and another worker may do it right: UNAVAILABLE, with the reason; UNAVAILABLE, DATA_LOSS,
// DEADLINE_EXCEEDED and CANCELLED stay what they are.
absl::Status ToOurs(const absl::Status& handoff);

class DecodeState {
 public:
  // How an attempt left, other than by a refused promise.
  enum class End : std::uint8_t {
    kFinished,  // Its answers are complete, or the engine found its work wrong.
    kGivenUp,
    kTransferFailed,
  };
  // Hears how attempts go. From inside DecodeState, which it must not call back.
  class Observer {
   public:
    virtual ~Observer() = default;
    // It runs; where it prefills here, its first token is out.
    virtual void OnAdopted(const Attempt& attempt,
                           const transfer::HandoffReceiver::Outcome& handoff) = 0;
    virtual void OnEnded(const Attempt& attempt, End how, const absl::Status& why) = 0;
  };

  struct Options {
    std::uint64_t epoch = 0;  // This life of the worker.
    std::int32_t attempts_max = 1024;
    SpanRing* spans = nullptr;  // Null: not traced. Outlives the state.
  };
  struct Order {
    std::int32_t tokens = 0;    // Positions whose KV is to come: the prompt's but one.
    std::vector<Chain> chains;  // Of their full blocks.
    std::uint32_t tenant = 0;   // Whose they are.
    bool local = false;         // Prefill here.
    // Where blocks may be had: before the rest is computed here, or besides what is sent.
    std::vector<kvstore::Fetcher::Source> sources = {};
    LossClass accepts = LossClass::kExact;  // Of KV that comes, or is reused.
    MonoTime deadline;                      // To run by.
  };
  struct Promise {
    transfer::Grant grant;
    std::int32_t reused_tokens = 0;
  };
  // What happens to an answer.
  struct Sink {
    std::function<void(const DecodeEngine::Tokens& tokens)> on_tokens;
    std::function<void(const absl::Status& status,
                       const transfer::HandoffReceiver::Outcome& handoff)>
        on_end;  // Once.
  };

  DecodeState(Loop& loop, DecodeEngine& engine, transfer::HandoffReceiver& receiver,
              Options options);
  ~DecodeState();
  // Null: nobody. Outlives the state, or is taken away before.
  void set_observer(Observer* observer) { observer_ = observer; }

  // `done` is called once, not from inside. ALREADY_EXISTS, RESOURCE_EXHAUSTED (attempts_max are
  // live, or the pool is full), CANCELLED.
  void Reserve(const Attempt& attempt, Order order,
               std::function<void(absl::StatusOr<Promise>)> done);
  // FAILED_PRECONDITION: nothing is reserved for this attempt (any more): ask for another.
  // ALREADY_EXISTS: it has its work. The sink is then not used; else it hears of the end once, not
  // from inside.
  absl::Status Decode(const Attempt& attempt, std::unique_ptr<DecodeEngine::Work> work, Sink sink);
  // Unknown attempts are ignored.
  void Release(const Attempt& attempt, const absl::Status& why);

  // The engine's name for an attempt that runs.
  std::optional<JobId> RunningJob(const Attempt& attempt) const;

  // From the engine.
  void OnTokens(JobId job, const DecodeEngine::Tokens& tokens);
  void OnEnd(JobId job, const absl::Status& status);

  bool Knows(const Attempt& attempt) const { return entries_.contains(attempt); }
  std::vector<Attempt> live() const;
  // Of attempts that have ended, until the last read into it has.
  std::size_t bytes_draining() const;
  std::int32_t attempts() const { return static_cast<std::int32_t>(entries_.size()); }
  // Those that end once the last read into their memory has.
  std::int32_t draining() const {
    return static_cast<std::int32_t>(jobs_.size() - entries_.size());
  }

 private:
  enum class State : std::uint8_t { kReserving, kImporting, kFilling, kFilled, kRunning };
  struct Entry;

  void OnRoom(JobId job, absl::StatusOr<Room> room);
  void Import(Entry& entry);
  void Fetch(Entry& entry, transfer::HandoffReceiver::Target& target);
  void OnFetched(JobId job, const kvstore::Fetcher::Outcome& fetched);
  void OnHandoff(JobId job, const transfer::HandoffReceiver::Outcome& outcome);
  void RunIfReady(Entry& entry);
  void Adopted(Entry& entry);
  void TraceHandoff(const Entry& entry, const transfer::HandoffReceiver::Outcome& outcome) const;
  void CountTokens(Entry& entry, std::int32_t count) const;
  void TraceTokens(const Entry& entry) const;
  void EndEntry(Entry& entry, End how, const absl::Status& status);

  Loop& loop_;
  DecodeEngine& engine_;
  transfer::HandoffReceiver& receiver_;
  const Options options_;
  std::map<Attempt, Entry*> entries_;
  std::map<JobId, std::unique_ptr<Entry>> jobs_;  // Draining ones are here alone.
  std::uint64_t next_job_ = 1;
  Observer* observer_ = nullptr;
};

}  // namespace penstock::decode
