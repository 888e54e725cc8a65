// SPDX-License-Identifier: Apache-2.0
// A worker's part in a cluster: joins the coordinator over one stream, reports load, events and
// blocks, and hands on what the coordinator wants. Reconnects for ever, with pauses that double up
// to 2 s; the worker goes on meanwhile. It has one stream at a time, and follows no term of a
// leadership that is below the last one (coordinator/leadership.h).
//
//   state       event                          next
//   connecting  Joined                         joined: load, and what the last stream may have lost
//   connecting  INVALID_ARGUMENT,              refused: on_refused, and nothing more
//               FAILED_PRECONDITION
//   any         ABORTED                        connecting, as a new session with a higher epoch
//   any         another end, Elsewhere,        connecting, in the same session, to the next of
//               or a term below one followed   several coordinators or to the one that leads
//   joined      Leave                          left: on_left when the coordinator knows
//
// Attempt events of the last `kept_for` are said again after each reconnect: the coordinator passes
// over what it knows. Block events are never said again: the coordinator sees the hole in their
// numbers and asks for a snapshot.
//
// On its loop's thread. Plain structs: users see neither gRPC nor messages.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/attempt.h"
#include "base/block_event.h"
#include "base/copy_event.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/loss_class.h"
#include "base/store_load.h"
#include "base/time.h"

namespace penstock::rpc {

enum class WorkerRole : std::uint8_t { kPrefill, kDecode, kStore };

// Fields as in WorkerMessage.Register.
struct WorkerRegistration {
  std::string name = {};
  WorkerRole role = WorkerRole::kPrefill;
  std::string model = {};
  std::vector<std::pair<std::string, std::string>> identity = {};
  std::int32_t block_tokens = 0;
  std::string endpoint = {};
  std::string transfer_address = {};
  std::uint64_t transfer_epoch = 0;
  std::uint64_t kv_bytes_per_token = 0;
  std::uint64_t blocks_total = 0;
  std::uint32_t sequences_max = 0;
  std::int32_t context_tokens = 0;
  std::string device = {};
  std::uint64_t pid = 0;
  std::vector<StoredGroup> groups = {};
  std::vector<CodecLoss> codecs = {};
};

// Fields as in WorkerMessage.Load.
struct WorkerLoad {
  bool ready = true;
  std::uint32_t sequences = 0;
  std::uint64_t blocks_used = 0;
  double prefill_tokens_per_s = 0;
  double link_bytes_per_s = 0;
  double step_seconds = 0;
  std::vector<Attempt> live = {};
  std::uint64_t bytes_held = 0;
  std::uint64_t bytes_draining = 0;
  std::vector<FetchRate> fetches = {};
  std::vector<TierLoad> tiers = {};
};

struct WorkerAttemptEvent {
  enum class Kind : std::uint8_t {
    kGranted,
    kAccepted,
    kComputed,
    kAdopted,
    kFinished,
    kRefused,
    kTransferFailed,
  };
  Kind kind = Kind::kGranted;
  Attempt attempt = {};
  std::uint64_t grant = 0;
  std::int32_t reused_tokens = 0;
  absl::Status error = {};
};

// Fields as in Source.
struct BlockSource {
  std::string store = {};
  std::string transfer_address = {};
  std::uint64_t transfer_epoch = 0;
  std::int32_t first_block = 0;
  std::int32_t end_block = 0;
  LossClass loss = LossClass::kExact;
  Duration compute_within = {};
  Duration fetch_time = {};
};

struct ReserveCommand {
  Attempt attempt = {};
  std::int32_t prompt_tokens = 0;
  std::vector<Chain> chains = {};
  std::uint32_t tenant = 0;
  bool local = false;
  Duration hold_for = {};
  std::vector<BlockSource> sources = {};
  LossClass accepts = LossClass::kExact;
};

struct StartCommand {
  Attempt attempt = {};
  std::uint64_t grant_epoch = 0;
  std::uint64_t grant_number = 0;
  std::string decode_name = {};
  std::string decode_transfer_address = {};
  std::int32_t prompt_tokens = 0;
  std::int32_t decode_reused_tokens = 0;  // At most prompt_tokens.
  Duration transfer_within = {};
  Duration hold_for = {};
  std::optional<Chain> last_chain = {};
  std::vector<BlockSource> sources = {};
  LossClass accepts = LossClass::kExact;
};

struct PreflightCommand {
  std::string peer = {};
  std::uint64_t peer_epoch = 0;
  std::string peer_transfer_address = {};
};
struct PreflightResult {
  absl::Status status = {};
  std::string transport = {};
  Duration round_trip = {};  // 0: not measured, as bytes_per_s.
  double bytes_per_s = 0;
};

// Fields as in WorkerCommand.Prefetch.
struct PrefetchCommand {
  Namespace copy_space = {};
  std::vector<Chain> chains = {};
  Duration within = {};
};

// Fields as in WorkerCommand.Store.
struct StoreCommand {
  std::string name = {};
  std::string transfer_address = {};
  std::uint64_t transfer_epoch = 0;
};

// Fields as in WorkerCommand.Replicate.
struct ReplicateCommand {
  StoreCommand from = {};
  Namespace copy_space = {};
  std::vector<Chain> chains = {};
  std::optional<Chain> parent = {};
  std::uint32_t tenant = 0;
  Duration within = {};
};

class SessionClient {
 public:
  struct Options {
    // "host:port" of each coordinator, at least one (CHECKed). They are tried in turn, or as one
    // says that another leads.
    std::vector<std::string> coordinators;
    Duration pause_min = std::chrono::milliseconds(100);
    Duration pause_max = std::chrono::seconds(2);
    Duration kept_for = std::chrono::seconds(10);
    std::size_t kept_max = 4096;
  };
  // Called on the loop. None may destroy the client.
  struct Events {
    std::function<void(const ReserveCommand& command)> on_reserve;
    std::function<void(const StartCommand& command)> on_start;
    std::function<void(const Attempt& attempt)> on_release;
    std::function<void()> on_snapshot;  // Say all blocks, by SayBlocks or SayCopies.
    std::function<void(const PreflightCommand& command)> on_preflight;
    std::function<void()> on_drained;
    std::function<void(const StoreCommand& command)> on_store = nullptr;        // Null: no matter.
    std::function<void(const PrefetchCommand& command)> on_prefetch = nullptr;  // Likewise.
    std::function<void(ReplicateCommand command)> on_replicate = nullptr;       // Likewise.
    std::function<WorkerLoad()> load;
    // The coordinator will not have this worker: the process should end with this.
    std::function<void(const absl::Status& why)> on_refused;
    std::function<void()> on_left;
  };

  // `loop` outlives the client.
  SessionClient(Loop& loop, Options options, WorkerRegistration registration, Events events);
  ~SessionClient();

  void Say(WorkerAttemptEvent event);
  void SayBlocks(const std::vector<BlockEvent>& events);
  // A store node's, in place of blocks; numbered as these are.
  void SayCopies(const std::vector<CopyEvent>& events);
  void SayPreflight(const PreflightCommand& command, const PreflightResult& result);
  // Says at once how much there is to do, besides the regular reports.
  void SayLoad();
  // Ends the session in order. Without a stream, on_left is called at once.
  void Leave();
  bool joined() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::rpc
