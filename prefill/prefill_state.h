// SPDX-License-Identifier: Apache-2.0
// What a prefill worker knows of its requests: orders from the coordinator, prompts from gateways,
// and how far each is. It decides; an engine computes, HandoffSender tells the decode worker.
//
// An attempt, from the first Start or Submit to its end:
//
//   state       event                                   next
//   -           Start (the coordinator's order)         ordered
//   -           Submit (the gateway's tokens)           prompted
//   ordered     Submit                                  connecting
//   prompted    Start                                   connecting
//   connecting  the channel to the decode worker opens  computing
//   connecting  it does not                             ended: UNAVAILABLE
//               (the engine imports blocks that the order's sources have, or computes them,
//               whichever is sooner)
//   computing   a layer of blocks is complete           computing; the decode worker is told
//   computing   blocks are used mapped, where they lie  computing; the decode worker is told that
//                                                       they are, and asks for what it cannot have
//                                                       there
//   computing   the decode worker has it all, and the   ended: OK
//               pair is measured where it is to be
//   computing   it gave up, or is gone                  ended: its reason
//   connecting  the prompt has other tokens             ended: INVALID_ARGUMENT
//   any         the engine refuses                      ended: its reason
//   any         Release, the deadline                   ended: CANCELLED, DEADLINE_EXCEEDED
//
// At its end an attempt frees what the engine holds for it and answers its Submit. Messages for one
// that has ended make a new one, which its deadline ends.
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
#include "absl/status/statusor.h"
#include "base/attempt.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/spans.h"
#include "base/time.h"
#include "kvstore/client/fetcher.h"
#include "transfer/handoff_sender.h"

namespace penstock::prefill {

// A prompt at the engine; never used twice.
enum class JobId : std::uint64_t {};

struct Prompt {
  std::vector<TokenId> tokens;  // Positions to compute: the prompt but for its last token.
  std::optional<Chain> root;    // Of its chains; none: that of no salt.
  std::uint32_t tenant = 0;
  std::int32_t priority = 0;
  // Where leading blocks may be had, instead of computing them. Set by the state.
  std::vector<kvstore::Fetcher::Source> sources = {};
  // The loss up to which blocks may be reused. Set by the state.
  LossClass accepts = LossClass::kExact;
  // Blocks before this one are not to be told of, unless all would be: then the last one is. Set by
  // the state.
  std::int32_t first_missing = 0;
  // Who decodes reads it in the device's memory: nothing need go to the host. Set by the state.
  bool on_device = false;

  std::vector<Chain> Chains(std::uint32_t block_tokens) const {
    return ChainsFrom(root.has_value() ? *root : RootChain({}, block_tokens), tokens, block_tokens);
  }
};

// The engine as this state sees it; answers come by OnTold, OnMapped, OnComputed and OnRefused,
// never from inside.
class PrefillEngine {
 public:
  virtual ~PrefillEngine() = default;
  virtual void Submit(JobId job, Prompt prompt) = 0;
  // Of blocks that were told as mapped (OnMapped) the decode worker has no other way to these: they
  // are brought to own memory, and told of. Unknown jobs are ignored.
  virtual void CopyMapped(JobId job, std::int32_t first_block, std::int32_t end_block) = 0;
  // Ends a job, complete or not. What it had may be overwritten from then on.
  virtual void End(JobId job) = 0;
};

// Where channels to decode workers come from.
class Channels {
 public:
  virtual ~Channels() = default;
  using Done = std::function<void(absl::StatusOr<transfer::Channel*>)>;

  // An open channel to this life of a worker: the one there is, or a new one. `done` is called
  // once, maybe from inside. What Endpoint::Connect says.
  virtual void Get(const transfer::Peer& peer, const std::string& address, Done done) = 0;
};

class PrefillState {
 public:
  // How an attempt left, other than well.
  enum class End : std::uint8_t { kGivenUp, kTransferFailed };
  // Hears how attempts go. From inside PrefillState, which it must not call back.
  class Observer {
   public:
    virtual ~Observer() = default;
    virtual void OnComputed(const Attempt& attempt) = 0;  // All is computed and told.
    virtual void OnEnded(const Attempt& attempt, End how, const absl::Status& why) = 0;
  };

  struct Options {
    std::int32_t attempts_max = 1024;
    std::int32_t block_tokens = 32;
    SpanRing* spans = nullptr;  // Null: not traced. Outlives the state.
  };
  // What the coordinator orders: whose KV goes where.
  struct Order {
    transfer::Grant grant;
    std::string decode_name;
    std::string decode_address;  // Of its transfer endpoint.
    MonoTime deadline;
    // Of the prompt's last full block; a prompt that has another is refused, INVALID_ARGUMENT.
    std::optional<Chain> last_chain = {};
    std::int32_t decode_reused_tokens = 0;  // Their KV need not be sent.
    // Of a preflight: as HandoffSender::Measure, before it ends.
    std::optional<MonoTime> measure_until = {};
    std::vector<kvstore::Fetcher::Source> sources = {};
    LossClass accepts = LossClass::kExact;
  };
  struct Outcome {
    absl::Status status;
    transfer::HandoffSender::Outcome handoff;
  };
  using Done = std::function<void(const Outcome& outcome)>;

  PrefillState(Loop& loop, PrefillEngine& engine, Channels& channels,
               transfer::HandoffSender& sender, Options options);
  ~PrefillState();
  // Null: nobody. Outlives the state, or is taken away before.
  void set_observer(Observer* observer) { observer_ = observer; }

  // ALREADY_EXISTS: this attempt has its order. RESOURCE_EXHAUSTED: attempts_max are live.
  absl::Status Start(const Attempt& attempt, const Order& order);
  // `done` is called once, not from inside. Until the order comes, the prompt waits to `deadline`.
  // Errors as Start; `done` is then not called.
  absl::Status Submit(const Attempt& attempt, Prompt prompt, MonoTime deadline, Done done);
  // Unknown attempts are ignored.
  void Release(const Attempt& attempt);

  // From the engine. Told blocks of jobs that have ended are passed over.
  void OnTold(JobId job, const transfer::HandoffSender::Told& told);
  // These are not in own memory, in some group at least.
  void OnMapped(JobId job, std::int32_t first_block, std::int32_t end_block);
  void OnRefused(JobId job, const absl::Status& why);
  void OnComputed(JobId job);  // Nothing is told any more.
  // One pass over a part of the job's prompt; for traces.
  struct Pass {
    MonoTime begin;
    MonoTime end;
    std::int32_t tokens = 0;
  };
  void OnPass(JobId job, const Pass& pass);
  // What came of a prompt's sources, once no more does. For traces.
  void OnImported(JobId job, const kvstore::Fetcher::Outcome& fetched);

  std::vector<Attempt> live() const;
  std::int32_t attempts() const { return static_cast<std::int32_t>(entries_.size()); }

 private:
  enum class State : std::uint8_t { kOrdered, kPrompted, kConnecting, kComputing };
  struct Entry;

  absl::StatusOr<Entry*> FindOrMake(const Attempt& attempt, State state, MonoTime deadline);
  absl::Status CheckPrompt(const Entry& entry) const;
  void Connect(Entry& entry);
  // Null where nobody wants to know of it.
  SpanRing* SpansOf(const Entry& entry) const;
  transfer::HandoffSender::OnSent TraceSends(const Entry& entry, transfer::Kind kind) const;
  void Compute(Entry& entry, transfer::Channel& channel);
  void EndEntry(Entry& entry, End how, const absl::Status& status,
                const transfer::HandoffSender::Outcome& handoff);

  Loop& loop_;
  PrefillEngine& engine_;
  Channels& channels_;
  transfer::HandoffSender& sender_;
  const Options options_;
  std::map<Attempt, std::unique_ptr<Entry>> entries_;
  std::map<JobId, Entry*> jobs_;  // Of those computing.
  std::uint64_t next_job_ = 1;
  Observer* observer_ = nullptr;
};

}  // namespace penstock::prefill
