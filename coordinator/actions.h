// SPDX-License-Identifier: Apache-2.0
// What the coordinator wants done. Plain values: its wrapper sends them, in their order, and tells
// it what came of it by the coordinator's methods. Nothing depends on an action arriving: whoever
// is silent is timed out, and every hold ends by itself after `hold_for`.
//
// Times are durations from when the action was made: no clock is compared across hosts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "base/attempt.h"
#include "base/copy_event.h"
#include "base/key.h"
#include "base/time.h"
#include "coordinator/worker.h"

namespace penstock::coordinator {

// Chains of a prompt's full blocks. Shared by a request and its actions, which may outlive it.
using ChainList = std::shared_ptr<const std::vector<Chain>>;

struct Peer {
  WorkerRef ref = {};
  std::string endpoint = {};
  std::string transfer_address = {};
  std::uint64_t transfer_epoch = 0;
};

// A run of a prompt's blocks that a store node has. The worker begins at the first that it has not
// itself.
struct FetchSource {
  Peer store = {};
  std::uint32_t first_block = 0;
  std::uint32_t end_block = 0;
  Tier tier = Tier::kHost;
  LossClass loss = LossClass::kExact;
  Duration compute_within = {};  // What computing them would take: beyond it, compute.
  Duration fetch_time = {};      // What bringing them is predicted to take.
};

// To the decode worker: take memory for the prompt, and answer with a grant or a refusal.
struct ReserveAction {
  Peer worker = {};
  Attempt id = {};
  std::uint32_t prompt_tokens = 0;
  ChainList chains = {};
  Peer prefill = {};  // Itself: it computes the missing part when told to start.
  Duration reply_within = {};
  Duration hold_for = {};  // Unless adopted by then.
  // In order, without holes: what whoever prefills fetches. What the decode worker fetches itself
  // need not be sent; none where that would be slow for it, too: two would wait for the same link.
  std::vector<FetchSource> sources = {};
  LossClass accepts = LossClass::kExact;  // Up to which blocks may be reused.
  std::uint32_t tenant = 0;
};
// To the prefill worker: compute, and send what the decode worker lacks, under its grant.
struct StartAction {
  Peer worker = {};
  Attempt id = {};
  std::uint32_t prompt_tokens = 0;
  ChainList chains = {};
  Peer decode = {};
  std::uint64_t grant = 0;                 // Of the decode worker, in its epoch.
  std::uint32_t decode_reused_tokens = 0;  // Need not be sent.
  // Transfers of a link go by this, the earliest first: a short prompt's, due soon, does not wait
  // for a long one's.
  Duration transfer_within = {};
  Duration reply_within = {};
  Duration hold_for = {};
  std::optional<Chain> last_chain = {};   // Of the last full block to compute; none: none is full.
  std::vector<FetchSource> sources = {};  // As of ReserveAction; and this.
  LossClass accepts = LossClass::kExact;
};
// To either: let go of this attempt, whatever of it is there. Repeated and unknown ones are fine.
struct ReleaseAction {
  Peer worker = {};
  Attempt id = {};
};
// To the gateway, once memory is granted: send token ids and sampling parameters to both, under
// this number.
struct PlannedAction {
  std::string gateway = {};
  Attempt id = {};
  Peer prefill = {};
  Peer decode = {};
  // Of the prompt that was planned for: with tokens emitted since, call Route again.
  std::uint32_t prompt_tokens = 0;
  std::uint32_t reused_tokens = 0;  // As predicted, of the prefill worker; and fetched.
  Duration prefill_within = {};     // Then the attempt is given up.
};
// To the gateway: the decode worker of this attempt was lost; call Route with the tokens emitted.
struct LostAction {
  std::string gateway = {};
  Attempt id = {};
  Duration reply_within = {};
};
// To the gateway: it is over. OK: the answer is complete.
struct EndedAction {
  std::string gateway = {};
  std::string request = {};
  absl::Status status = {};
  Duration retry_after = {};  // Of RESOURCE_EXHAUSTED and UNAVAILABLE.
};
// To a worker or store node: its events have a hole; send a snapshot.
struct SnapshotAction {
  Peer worker = {};
};
// A worker that was to drain has no request any more.
struct DrainedAction {
  Peer worker = {};
};
// To a prefill worker: see that it can move KV to that decode worker, and tell (Preflighted).
struct PreflightAction {
  Peer prefill = {};
  Peer decode = {};
};
// To a worker whose blocks may be in stores: where it is to have copies of them kept from now on.
struct StoreAction {
  Peer worker = {};
  Peer store = {};  // Without a name: nowhere.
};
// To a store node: a request that waits for room will ask for these copies, which it has in a tier
// that is slower than memory.
struct PrefetchAction {
  Peer worker = {};
  Namespace copy_space = {};
  std::vector<Chain> chains = {};
  Duration within = {};
};
// To a store node: copy these blocks, which follow each other, from another one, which has them: so
// many ask for them that one holder is too few.
struct ReplicateAction {
  Peer worker = {};
  Peer from = {};
  Namespace copy_space = {};
  std::vector<Chain> chains = {};
  std::optional<Chain> parent = {};  // Of the first; none: it is the first of its chain.
  std::uint32_t tenant = 0;
  Duration within = {};
};
// A worker's session ended: close its connections; it must register with a higher epoch.
struct SessionEndedAction {
  Peer worker = {};
};

using Action = std::variant<ReserveAction, StartAction, ReleaseAction, PlannedAction, LostAction,
                            EndedAction, SnapshotAction, DrainedAction, PreflightAction,
                            StoreAction, PrefetchAction, ReplicateAction, SessionEndedAction>;

}  // namespace penstock::coordinator
