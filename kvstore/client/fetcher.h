// SPDX-License-Identifier: Apache-2.0
// Brings blocks of a prompt from store nodes into slabs of this process, verified: raw frames
// straight into place, others decoded on their way. Where the order allows it, and a raw frame lies
// in memory of this host in the pages of the pool, it is verified where it is and stays there,
// mapped. Where a device is to decode blocks, those that it can stay encoded, checked to their last
// byte.
//
// A fetch has sources, each a run of blocks at one node, all asked at once; blocks are good from
// the first missing one on, as far as none is missing. Who planned the sources may not have known
// what is missing here: the first one is asked from there on, and what lies behind a hole is not
// asked for. A source's time is over when computing its blocks, and those before, would have come
// to its end: a tier that turns out slower is left for the computation. A fetch ends when all is
// there or the rest is not to be had, or by Cancel; then no byte of its slabs is written any more.
//
// A fetch that goes backwards is for who computes the same blocks from the front: the last ones
// come first, each is told of and good as it comes, mapped or not, whatever is missing before it,
// until the two have met (Want). So it has all the time of all its sources.
//
// A node that dies, a copy that is gone or damaged, a tier that is too slow: fewer blocks, never
// wrong ones, and never later than that but for a read that must end first.
//
// Each read takes its turn on its link (transfer/link_turns.h).
//
// On one loop. Frames that must be decoded, or checked for who does, are so there, block by block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/attempt.h"
#include "base/copy_event.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/kv_spec.h"
#include "base/loss_class.h"
#include "base/mapped_block.h"
#include "base/spans.h"
#include "base/time.h"
#include "kvstore/client/mapped_blocks.h"
#include "kvstore/codecs/codec.h"
#include "kvstore/node/store_links.h"
#include "transfer/link.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

enum class FetchId : std::uint64_t {};

class Fetcher {
 public:
  struct Options {
    std::vector<std::byte> secret = {};  // The cluster's; empty: frames need no MAC.
    std::size_t reads_max = 16;          // Copies of one find that are read at a time.
    MappedBlocks::Options mapped = {};
  };
  // The blocks of one group of the pool that they go to.
  struct Group {
    std::int32_t group = 0;
    PageLayout layout = {};
    // Block first_block + i is wanted in slabs[i]; blocks before are not needed (of window groups).
    std::int32_t first_block = 0;
    std::vector<std::byte*> slabs = {};
  };
  struct Source {
    StoreAddress store = {};
    std::int32_t first_block = 0;
    std::int32_t end_block = 0;
    LossClass loss = LossClass::kExact;  // Of the copies there that are wanted.
    Duration within = {};                // What computing its blocks would take.
    Duration fetch_time = {};            // What fetching them is predicted to; not used here.
  };
  struct Order {
    LossSpaces spaces = {};          // Of the blocks.
    std::vector<Chain> chains = {};  // Of all blocks from 0 to the last one wanted.
    std::int32_t first_missing = 0;  // Blocks before are there.
    std::vector<Group> groups = {};
    std::vector<Source> sources = {};  // In order.
    bool map = false;                  // Blocks may stay where they are: those are not in `slabs`.
    bool encoded = false;  // And may stay encoded, where kernels::OpsEncode takes the layout.
    bool backwards = false;
    // Of one that goes backwards: a block of a group is verified, a copy of class `loss`; mapped,
    // or encoded, or, where both are null, in its slab.
    std::function<void(std::int32_t group, std::int32_t block, LossClass loss,
                       const std::shared_ptr<const MappedBlock>& mapped,
                       const std::shared_ptr<const kernels::EncodedBlock>& encoded)>
        on_there = nullptr;
  };
  // What was read of one source; for traces and rates.
  struct Span {
    std::string store = {};
    transfer::Kind kind = transfer::Kind::kInproc;
    Tier tier = Tier::kHost;  // Where it lay.
    CodecId codec = CodecId::kRaw;
    std::int32_t group = 0;
    std::int32_t blocks = 0;
    std::int32_t blocks_mapped = 0;   // Of those.
    std::int32_t blocks_encoded = 0;  // Of those, left to a device to decode.
    std::size_t bytes = 0;            // As it travelled, or lies there.
    std::size_t bytes_mapped = 0;     // Of those, verified where they are.
    std::size_t bytes_encoded = 0;
    std::size_t block_bytes = 0;  // As it is in the pool.
    Duration tier_wait = {};      // The longest that a copy took to be in host memory.
    Duration turn_wait = {};      // The longest that a read waited for its link.
    Duration decode = {};         // Of all, where there is something to decode, or to check for it.
    MonoTime asked = {};          // Find was sent.
    MonoTime first_found = {};
    MonoTime verified = {};  // The last one.
  };
  struct Mapped {
    std::int32_t group = 0;
    std::int32_t block = 0;
    std::shared_ptr<const MappedBlock> at = {};
  };
  struct Encoded {
    std::int32_t group = 0;
    std::int32_t block = 0;
    std::shared_ptr<const kernels::EncodedBlock> as = {};
  };
  struct Outcome {
    // Good up to here, in all groups; at least first_missing. Of one that went backwards all or
    // nothing, where all are those that were wanted at last.
    std::int32_t end_block = 0;
    Lineage lineage = {};      // Of the good ones.
    absl::Status status = {};  // Why no more came; OK: all did.
    std::vector<Span> spans = {};
    // Of the good blocks, those that are not in their slabs. Of one that went backwards: up to a
    // read that failed. What came of the blocks before, its node does not keep.
    std::vector<Mapped> mapped = {};
    // And those that are encoded; of one that went backwards none, who heard of each.
    std::vector<Encoded> encoded = {};
  };
  using Done = std::function<void(const Outcome& outcome)>;

  // Both outlive the fetcher.
  Fetcher(Loop& loop, StoreLinks& links, transfer::LinkTurns& turns, Options options);
  // Fetches never tell; no byte of theirs is written afterwards once `links` is gone, too.
  ~Fetcher();

  // `done` is called once, not from inside; it may destroy the fetcher. The slabs must stay until
  // then.
  FetchId Fetch(Order order, Done done);
  // Of one that goes backwards: blocks before `first_block` are not wanted any more. Unknown ones
  // are ignored.
  void Want(FetchId id, std::int32_t first_block);
  // Ends it early, with what has come. Unknown ones are ignored.
  void Cancel(FetchId id);
  std::size_t fetches() const { return fetches_.size(); }
  const MappedBlocks& mapped() const { return mapped_; }

 private:
  struct Run;  // One find: a group's blocks of one source.
  struct Job;

  void Begin(Job& job, Run& run, absl::StatusOr<StoreLink*> link);
  void OnAnswer(Job& job, Run& run, const absl::StatusOr<StoreMessage>& answer);
  absl::Status OnFound(Job& job, Run& run, const FoundMessage& found);
  void StartReads(Job& job, Run& run);
  void Read(Job& job, Run& run, std::size_t index);
  void OnRead(Job& job, Run& run, std::size_t index, const absl::Status& status);
  void Settle(Run& run);
  void Stop(Job& job, Run& run, const absl::Status& why);
  void EndIfOver(Job& job);
  void Finish(Job& job);

  Loop& loop_;
  StoreLinks& links_;
  transfer::LinkTurns& turns_;
  const Options options_;
  std::map<FetchId, std::unique_ptr<Job>> fetches_;
  std::uint64_t next_ = 1;
  CodecScratch scratch_;
  MappedBlocks mapped_;
  transfer::Life life_;
};

// Records what a fetch took, as spans of `attempt`.
void TraceFetch(SpanRing& spans, const Attempt& attempt, const Fetcher::Outcome& outcome);

}  // namespace penstock::kvstore
