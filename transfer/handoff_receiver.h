// SPDX-License-Identifier: Apache-2.0
// The decode side of handoffs: reads the KV of granted prompts, layer by layer, out of the pools of
// prefill workers into slabs reserved for it, and says when a prompt is complete and verified.
//
// A handoff, from Expect to its `done`:
//
//   state     event                        next
//   expected  Ready or Mapped of a peer    reading (bound to that peer from now on), as there
//   reading   Ready                        reading; its units are queued, known ones passed over
//   reading   Mapped                       reading; what is missing of it is asked for, once it
//                                          comes from nowhere else
//   reading   a read ends well             reading, or, when nothing is missing, done: OK
//   reading   a read ends in DATA_LOSS     reading, again; ending after `tries`
//   reading   Settle: blocks that come from reading; of those that came nothing is read any more,
//             elsewhere have, or have not  the others are queued; or done: OK
//   any       Failed of its peer, peer     ending
//             gone, deadline, GiveUp
//   ending    the last read has ended      done: why. From here on no byte of its slabs is written.
//
// A peer may try the way before there is a request, and measure it: blocks of a grant with
// kProbeGrant go to scratch memory, of a few grants at a time, RESOURCE_EXHAUSTED beyond.
//
// Reads of one peer go by deadline, earliest first, with at most reads_in_flight_max asked for at a
// time, and bytes_in_flight_max times the most legs that a unit of the peer's has (one read may be
// larger), so that a long prompt does not hold up short ones. Each takes its turn on its link
// (link_turns.h). On the loop's thread; no other threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "base/event_loop.h"
#include "base/time.h"
#include "transfer/channel.h"
#include "transfer/gpu_slabs.h"
#include "transfer/handoff_messages.h"
#include "transfer/link_turns.h"

namespace penstock::transfer {

class HandoffReceiver {
 public:
  struct Options {
    // Of one peer. Both count what waits for its turn, of which a link's queue holds thousands.
    std::size_t bytes_in_flight_max = std::size_t{4} << 20;  // For each leg.
    std::size_t reads_in_flight_max = 256;                   // Of all legs.
    int tries = 3;                                           // Of a read whose checksum is wrong.
  };

  // Where the KV of one prompt goes. Blocks below first_missing are there already; of a group,
  // those below its first_block are not needed.
  struct Target {
    struct Group {
      std::int32_t first_block = 0;
      std::vector<std::byte*> slabs;  // slabs[i] is block first_block + i; to end_block.
      // The same by their numbers in the memory of GPUs, where links of kind nccl bring them. All
      // of them after LandOnGpus (CHECKed where such a link brings blocks).
      std::vector<std::uint32_t> on_gpus = {};
    };
    std::vector<Group> groups;  // As in the pool.
    std::int32_t first_missing = 0;
    std::int32_t end_block = 0;
    // Blocks from elsewhere_first up to elsewhere_end are being brought from elsewhere, to the same
    // slabs: nothing is read there until Settle.
    std::int32_t elsewhere_first = 0;
    std::int32_t elsewhere_end = 0;
    // The peer tells of such blocks, and of none that are mapped there: the rest of them may as
    // well come from it. Once at most, from inside; must not call back.
    std::function<void()> on_told_elsewhere = nullptr;
    LossClass accepts = LossClass::kExact;  // Of what comes.
    MonoTime deadline;
    // Of a peer that tries the way over kind nccl: what comes is checked, and kept nowhere.
    bool lands_nowhere = false;
  };

  // One leg of a stretch of blocks of one layer, for traces.
  struct Span {
    std::int32_t group = 0;
    std::int32_t cache_layer = 0;
    std::int32_t blocks = 0;
    std::size_t bytes = 0;
    MonoTime told;   // Ready arrived.
    MonoTime begun;  // Its turn came, and the (last) read was asked for.
    MonoTime verified;
    ReadParts parts = {};  // Of the (last) read, over kind nccl.
  };
  struct Outcome {
    absl::Status status;
    std::string peer;  // Empty while none told us anything, as `kind` then says nothing.
    Kind kind = Kind::kInproc;
    std::int32_t blocks_valid = 0;  // Leading blocks that are complete in every group.
    Lineage lineage;                // Of what the peer told of.
    std::size_t bytes = 0;
    std::int32_t repeated_reads = 0;
    std::vector<Span> spans;
  };
  using Done = std::function<void(const Outcome& outcome)>;

  // A peer and its channel are gone.
  using OnGone = std::function<void(const Peer& peer, const absl::Status& why)>;

  // `pool` describes the slabs that targets lie in. `turns` outlives it. `on_gone` may be null.
  HandoffReceiver(Loop& loop, LinkTurns& turns, std::vector<PoolGroup> pool, Options options,
                  OnGone on_gone);
  // Handoffs never tell; no byte of theirs is written afterwards.
  ~HandoffReceiver();

  // Before the first peer: over kind nccl blocks land there. `gpus` as lanes count them.
  void LandOnGpus(std::vector<GpuSlabs> gpus);

  // Promises to take what `grant` names. `done` is called once, not from inside this call; where
  // nothing is missing, soon. The grant must be new.
  void Expect(const Grant& grant, Target target, Done done);
  // Of the blocks that come from elsewhere those below `end_block` are there, verified; no byte of
  // the others is written any more. Once, of a handoff with such blocks; unknown ones are ignored.
  // `done` may be called from inside.
  void Settle(const Grant& grant, std::int32_t end_block);
  // Ends a handoff; unknown ones are ignored. `done` may be called from inside.
  void GiveUp(const Grant& grant, const absl::Status& why);

  // A peer that prefills. Its channel is not started yet; it goes when the peer does, or breaks the
  // protocol.
  void AddPeer(std::unique_ptr<Channel> channel);

  std::int32_t block_tokens() const { return pool_.front().side.layout.block_tokens; }
  std::int32_t handoffs() const { return static_cast<std::int32_t>(handoffs_.size()); }

 private:
  struct Sender;  // A peer.
  struct Handoff;
  struct Stretch;  // Units of one Ready message that are read together, over one leg.

  void OnMessage(Sender& sender, std::span<const std::byte> bytes);
  void OnPool(Sender& sender, const PoolMessage& message);
  void OnReady(Sender& sender, const ReadyMessage& message);
  void OnMapped(Sender& sender, const MappedMessage& message);
  // Who fills `grant`, and may: null, and the peer knows why where it does not already.
  Handoff* FilledBy(Sender& sender, const Grant& grant);
  absl::Status ExpectProbe(const Sender& sender, const ReadyMessage& first);
  void OnFailed(Sender& sender, const FailedMessage& message);
  // Whether this peer brings units to slabs on GPUs.
  bool BringsToGpus(const Sender& sender) const;
  // Where a block's part of the leg begins. Null: nothing is to land.
  std::byte* PlaceOf(const Sender& sender, const Target& target, std::size_t group,
                     const SplitPlan::Leg& leg, std::int32_t block) const;
  static void Bind(Handoff& handoff, Sender& sender);
  absl::Status Queue(Sender& sender, Handoff& handoff, const ReadyMessage& message);
  // Blocks message.blocks[begin] up to [end], over one leg.
  void QueueLeg(Sender& sender, Handoff& handoff, const ReadyMessage& message, std::size_t leg,
                std::size_t begin, std::size_t end);
  // Asks its peer for what is missing of blocks that are mapped there.
  static void Want(Handoff& handoff, const MappedMessage& mapped);
  void StartReads(Sender& sender);
  void Read(Sender& sender, std::uint64_t stretch);
  void OnRead(Sender& sender, std::uint64_t stretch, const absl::Status& status);
  void Fail(Handoff& handoff, const absl::Status& why, bool tell_peer);
  void EndIfDrained(Handoff& handoff);
  void Complete(Handoff& handoff);
  void End(Handoff& handoff);
  void Refuse(Sender& sender, const Grant& grant, const absl::Status& why);
  void Close(Sender& sender, const absl::Status& why);

  Loop& loop_;
  LinkTurns& turns_;
  const std::vector<PoolGroup> pool_;
  const Options options_;
  const OnGone on_gone_;
  // The same in the memory of GPUs; empty without any.
  std::vector<PoolGroup> pool_on_gpus_;
  std::vector<GpuSlabs> gpus_;
  std::vector<std::unique_ptr<Sender>> senders_;
  std::map<Grant, std::unique_ptr<Handoff>> handoffs_;
  std::uint64_t next_stretch_ = 1;
  int probes_ = 0;
  bool measured_ = false;  // One of them is of more than a block.
};

}  // namespace penstock::transfer
