// SPDX-License-Identifier: Apache-2.0
// The prefill side of handoffs: tells decode workers which blocks of which layers are complete in
// our slabs, with their checksums, and learns when nobody needs them any more.
//
// A handoff, from Begin to its `done`:
//
//   state    event                              next
//   telling    Tell                               telling; kept back until the peer's pool is known
//   telling    TellMapped                         telling; what the peer then wants, it is told of
//   telling    Wanted of its peer                 telling; more often than TellMapped: done:
//                                                 RESOURCE_EXHAUSTED
//   telling    Received of its peer               done: OK; measuring where that was asked for
//   measuring  the pair is measured               done: OK
//   any        Failed of its peer, peer gone,     done: why
//              deadline, Fail
//
// Told blocks must stay as they are until `done`. A peer may still be reading then (it was too
// late, or is gone): what it reads fails its checksum there. On the loop's thread; no other
// threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/event_loop.h"
#include "base/time.h"
#include "transfer/channel.h"
#include "transfer/gpu_slabs.h"
#include "transfer/handoff_messages.h"
#include "transfer/life.h"
#include "transfer/pair_meter.h"

namespace penstock::transfer {

class HandoffSender {
 public:
  // One layer of consecutive blocks, complete in our slabs.
  struct Told {
    std::int32_t group = 0;
    std::int32_t cache_layer = 0;
    std::int32_t first_block = 0;
    Lineage lineage = {};
    std::vector<std::uint32_t> slabs;  // slabs[i] holds block first_block + i.
    MonoTime computed = {};            // For traces; not used here.
    // In slabs on a GPU: when they are complete. Null: they are, on all GPUs.
    std::shared_ptr<const Event> written = nullptr;
  };
  struct Outcome {
    absl::Status status;
    std::string peer;
    std::size_t bytes_told = 0;
    PairFigures figures;  // Of one that was to be measured.
  };
  using Done = std::function<void(const Outcome& outcome)>;
  // The peer was told of all of `told`, which are so many bytes there. For traces; must not call
  // back.
  using OnSent = std::function<void(const Told& told, std::size_t bytes)>;

  // Of the blocks that it was told lie mapped here, the peer has no other way to these: they are to
  // be told of. Between the first and the last that TellMapped named; some of them maybe not
  // mapped, or told of before. Once at most for each TellMapped; must not call back.
  using OnWanted = std::function<void(std::int32_t first_block, std::int32_t end_block)>;

  // A peer and its channel are gone.
  using OnGone = std::function<void(const Channel& channel, const absl::Status& why)>;

  // `pool` describes our slabs; bases[g] is where those of group g begin, readable by the host,
  // unless ReadOnGpus says otherwise. `on_gone` may be null.
  HandoffSender(Loop& loop, std::vector<PoolGroup> pool, std::vector<const std::byte*> bases,
                OnGone on_gone);
  // Handoffs never tell.
  ~HandoffSender();
  // Before the first peer: peers over kind nccl read the slabs there, where the sums that they are
  // to check are computed.
  void ReadOnGpus(std::vector<GpuSlabs> gpus);

  // Starts filling `grant` over `channel`, one of AddPeer that is not gone. `done` is called once,
  // not from inside this call; unless the peer says more, at `deadline`. The grant must be new
  // here.
  void Begin(const Grant& grant, Channel& channel, MonoTime deadline, Done done,
             OnSent on_sent = nullptr, OnWanted on_wanted = nullptr);
  // Once its one block is there, the pair is measured before the handoff ends, at `until` at the
  // latest. Of a probe grant that has begun; PairMeter::kGrants numbers behind it are its own, too.
  void Measure(const Grant& grant, MonoTime until);
  // Unknown grants are ignored: theirs ended meanwhile.
  void Tell(const Grant& grant, const Told& told);
  // Of these blocks some are not in our slabs, in some group at least, but mapped.
  void TellMapped(const Grant& grant, std::int32_t first_block, std::int32_t end_block);
  // Ends a handoff and tells its peer why. `done` may be called from inside.
  void Fail(const Grant& grant, const absl::Status& why);

  // A peer that decodes. Its channel is not started yet; it goes when the peer does, or breaks the
  // protocol.
  Channel& AddPeer(std::unique_ptr<Channel> channel);

  std::int32_t handoffs() const { return static_cast<std::int32_t>(handoffs_.size()); }

 private:
  struct Receiver;  // A peer.
  struct Handoff;
  using LegSums = std::vector<std::vector<std::uint32_t>>;  // [legs][blocks told]

  void OnMessage(Receiver& receiver, std::span<const std::byte> bytes);
  void OnPool(Receiver& receiver, const PoolMessage& message);
  void OnWantedOf(Handoff& handoff, const WantedMessage& wanted);
  void OnReceived(Handoff& handoff);
  absl::Status Send(Receiver& receiver, Handoff& handoff, const Told& told);
  void SendFromGpus(const Receiver& receiver, const Handoff& handoff, const Told& told);
  absl::Status SendReady(Handoff& handoff, const Told& told, const LegSums& sums);
  void End(Handoff& handoff, const absl::Status& status);
  void Close(Receiver& receiver, const absl::Status& why);

  Loop& loop_;
  const std::vector<PoolGroup> pool_;
  const std::vector<const std::byte*> bases_;
  // The same in the memory of GPUs; empty without any.
  std::vector<PoolGroup> pool_on_gpus_;
  std::vector<GpuSlabs> gpus_;
  const OnGone on_gone_;
  std::map<const Channel*, std::unique_ptr<Receiver>> receivers_;
  std::map<Grant, std::unique_ptr<Handoff>> handoffs_;
  std::uint64_t begun_ = 0;  // Handoffs.
  PairMeter meter_;
  Life life_;
};

}  // namespace penstock::transfer
