// SPDX-License-Identifier: Apache-2.0
// How fast KV moves from this worker to a peer, measured with the messages that move it: after a
// first block of a made-up prompt went well, handoffs under further probe grants (kProbeGrant).
//
//   round trip  of a Ready without blocks, which the peer answers with Received at once: the best of
//               16, or of as many as end in 25 ms, one at the least
//   bandwidth   of 256 KiB, 1 MiB and the rest of 8 MiB, each a Ready of so many blocks: from the
//               first Ready to Received, so with every checksum verified; the best rate
//
// All blocks are the one that was computed, whose bytes the sender's caches may hold. Nothing more is
// asked for after 100 ms, or that is foreseen to take longer (of the first of these, a block moves in
// any case); after a second, or at `until`, what is still out counts no more. A peer takes one such
// measurement at a time: it answers RESOURCE_EXHAUSTED to another, which tries again.
//
// One pair at a time, so that pairs of this worker do not share their links. On the loop's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "base/event_loop.h"
#include "base/time.h"
#include "transfer/channel.h"
#include "transfer/handoff_messages.h"
#include "transfer/life.h"

namespace penstock::transfer {

// 0: not measured.
struct PairFigures {
  Duration round_trip{};
  double bytes_per_s = 0;
};

class PairMeter {
 public:
  // One layer of the block, as a peer may read it.
  struct Layer {
    std::int32_t group = 0;
    std::int32_t cache_layer = 0;
    ReadyMessage::Block block;
  };
  struct Pair {
    // The kGrants numbers behind this one are used, too.
    Grant grant;
    Channel* channel = nullptr;  // Open until Remove.
    std::vector<Layer> layers;   // All of the block; it stays as it is until `done` or Remove.
    std::size_t block_bytes = 0;
    MonoTime until;
  };
  // OK also where time was too short for some figure. Else why the pair is not good: what the peer
  // said, DATA_LOSS first of all.
  using Done = std::function<void(const absl::Status& status, const PairFigures& figures)>;

  static constexpr std::uint64_t kGrants = 127;

  explicit PairMeter(Loop& loop);  // It outlives the meter.
  ~PairMeter();

  // `done` is called once, not from inside this call, unless Remove comes first.
  void Add(Pair pair, Done done);
  // Unknown ones are ignored.
  void Remove(const Grant& grant);

  // What a peer answered. Of no interest unless it is about what is being measured.
  void OnReceived(const Channel& channel, const Grant& grant);
  void OnFailed(const Channel& channel, const Grant& grant, const absl::Status& why);

 private:
  struct Measuring;

  // Null unless the first pair waits for that answer.
  Measuring* Asked(const Channel& channel, const Grant& grant) const;
  void Schedule();
  // Of no blocks: only for an answer.
  void Ask(Measuring& measuring, std::int32_t blocks);
  // Blocks of the next part; 0: there is none.
  std::int32_t NextBlocks(Measuring& measuring) const;
  void CallOff(Measuring& measuring, const absl::Status& why);
  std::unique_ptr<Measuring> Take(const Grant& grant);
  void End(const Grant& grant, const absl::Status& status);

  Loop& loop_;
  std::deque<std::unique_ptr<Measuring>> pairs_;  // The first is being measured.
  Life life_;
};

}  // namespace penstock::transfer
