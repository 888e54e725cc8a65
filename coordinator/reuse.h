// SPDX-License-Identifier: Apache-2.0
// Whether blocks of a prompt are fetched from store nodes or computed, by predicted seconds.
//
// Who prefills begins with the leading blocks of its own pool. What a store node has behind them can
// be fetched: in segments, each from the one node from which it comes soonest; as many as make
// fetching, and computing the rest, take the least time. A slow fetch, beside which the same blocks
// are computed until both meet, may take longer than computing, too (base/fetch_pace.h).
//
// Seconds of a segment: its bytes at the rate that this worker measured of this node, tier and
// codec, decoding included; at the mean of what workers of its model measured of that tier and
// codec, on their own host or on another; or, before anybody measured, at a guess, which knows what
// the node says of its disks. To these come a fixed share of each fetch, and the bytes that plans
// before this one are to fetch from there: so no node is a hot spot while others have the blocks;
// of those with like copies, from which they come as soon, but for a tenth, that from which less
// was fetched of late. Twice all that where a node is known in part.
//
// Computing takes tokens at the worker's measured rate. That later tokens attend to more, and cost
// more, is not modelled: it makes fetching look worse than it is, in long prompts.
//
// Groups: a prefix of so many blocks is usable when full groups have all of them, and window groups
// those that the next token sees. One source gives all groups of a block, so where window groups
// are needed only nodes with their copies count. Of unlike windows the largest stands for all;
// where all groups have windows they count as full ones.
//
// Loss: a request that accepts copies with a loss has the choice of those of every class up to what
// it accepts, besides the exact ones; of two that take as long, the one of less loss. All groups of
// a block come as copies of one class.
//
// Pure functions; any thread. Store nodes are members (worker.h).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/copy_event.h"
#include "coordinator/store_index.h"
#include "coordinator/worker.h"

namespace penstock::coordinator {

using StoreNodes = std::vector<const Worker*>;  // By number; null: none.

struct ReuseOptions {
  // Guesses, in bytes per second, until somebody measures.
  double local_bytes_per_s = 4e9;   // From the host tier of a node of the same host.
  double peer_bytes_per_s = 1e9;    // From that of another's.
  double disk_bytes_per_s = 1e9;    // Where the node does not say.
  double remote_bytes_per_s = 2e8;  // Likewise.
  double fetch_seconds = 0.0005;    // Of each fetch, besides its bytes.
  // Beyond these the rest of a prompt is computed.
  std::uint32_t segments_max = 256;
};

// What workers of a model measured on average: on their own host, on others; by tier and codec; 0:
// nothing.
class FetchMeans {
 public:
  void Take(bool same_host, Tier tier, std::uint8_t codec, double bytes_per_s) {
    double& mean = means_[same_host][static_cast<std::size_t>(tier)][codec % kCodecs];
    mean = mean > 0 ? mean + kWeight * (bytes_per_s - mean) : bytes_per_s;
  }
  double of(bool same_host, Tier tier, std::uint8_t codec) const {
    return means_[same_host][static_cast<std::size_t>(tier)][codec % kCodecs];
  }
  // Of the codec that came slowest, for copies of which nobody knows by which they are.
  double slowest(bool same_host, Tier tier) const {
    double slowest = 0;
    for (const double mean : means_[same_host][static_cast<std::size_t>(tier)]) {
      if (mean > 0 && (slowest == 0 || mean < slowest)) slowest = mean;
    }
    return slowest;
  }

 private:
  static constexpr double kWeight = 0.1;
  static constexpr std::size_t kCodecs = 32;
  std::array<std::array<std::array<double, kCodecs>, kTiers>, 2> means_ = {};
};

// Part of a plan: one run of blocks from one node.
struct Fetch {
  WorkerId store = kNoWorker;
  Tier tier = Tier::kHost;
  std::uint8_t codec = 0;
  LossClass loss = LossClass::kExact;
  std::uint32_t first = 0;  // Blocks.
  std::uint32_t end = 0;
  std::uint64_t bytes = 0;
  double seconds = 0;          // As predicted, with what is fetched from there before.
  double compute_seconds = 0;  // Of the same blocks, at the same worker.
};

// What of one prompt can be fetched, by anybody.
struct Reuse {
  struct Choice {
    WorkerId store = kNoWorker;
    Tier tier = Tier::kHost;  // The slowest of all groups.
    std::uint8_t codec = 0;
    LossClass loss = LossClass::kExact;
    bool windows = true;  // It has window groups, too.
    double block_bytes = 0;
    double window_block_bytes = 0;  // On top, where window groups are needed.
  };
  struct Segment {
    std::uint32_t first = 0;
    std::uint32_t end = 0;
    std::uint32_t choices_first = 0;
    std::uint32_t choices_end = 0;
  };
  std::vector<Segment> segments = {};  // In order; there may be holes.
  std::vector<Choice> choices = {};
  std::uint32_t window_tokens = 0;  // The largest; 0: no window groups.

  std::span<const Choice> of(const Segment& segment) const {
    return std::span(choices).subspan(segment.choices_first,
                                      segment.choices_end - segment.choices_first);
  }
  void clear() {
    segments.clear();
    choices.clear();
    window_tokens = 0;
  }
};

// `found` is [classes, groups], exact ones first; of window groups, and where there is more than
// one class, with holes (StoreIndex::AtHole::kGoOn). Copies of a class with a loss are passed over
// unless `codecs` has theirs within that class.
void JoinGroups(std::span<const StoredGroup> groups, std::span<const StoreIndex::Found> found,
                std::span<const CodecLoss> codecs, const StoreNodes& stores,
                std::uint32_t segments_max, Reuse& reuse);

// What decides besides the worker.
struct ReuseSituation {
  const Reuse* reuse = nullptr;
  const StoreNodes* stores = nullptr;
  const StoreIndex* index = nullptr;  // Null: no node is known in part.
  const FetchMeans* means = nullptr;
  std::uint32_t block_tokens = 0;
  std::uint32_t blocks_max = 0;  // Full blocks that a prefill worker would compute.
};

struct Extension {
  std::uint32_t end = 0;  // Blocks that need not be computed: own, then fetched.
  double seconds = 0;     // Of fetching.
};
// What a worker has, and how it goes on behind that.
struct Behind {
  std::uint32_t own_blocks = 0;  // Full ones, from the prompt's first on.
  double block_seconds = 0;      // To compute a block.
};
// Adds what is fetched to `fetches`, in order and without holes, unless that is null.
Extension Extend(const ReuseSituation& situation, const ReuseOptions& options, const Worker& worker,
                 const Behind& behind, std::vector<Fetch>* fetches);

// The same of many workers, roughly: as if none had measured anything itself, and from blocks that
// are fetched from the first on. Which workers are worth a look is decided by it.
class ReuseEstimates {
 public:
  // Both outlive it.
  ReuseEstimates(const ReuseSituation& situation, const ReuseOptions& options);
  Extension Extend(std::uint64_t host, const Behind& behind) const;

 private:
  struct Point {
    std::uint32_t end = 0;
    double seconds = 0;  // Of fetching all from `first_` up to there.
  };
  struct Profile {
    std::uint64_t host = 0;
    std::vector<Point> points = {};
  };
  static constexpr std::size_t kHostsMax = 8;
  static constexpr std::size_t kPointsMax = 16;

  std::uint32_t first_ = 0;
  std::vector<Profile> profiles_;  // Of workers on hosts with holders; the first: of others.
};

// As predicted for this worker.
double FetchBytesPerS(const ReuseSituation& situation, const ReuseOptions& options,
                      const Worker& worker, const Worker& store, Tier tier, std::uint8_t codec);

// "raw", "planes", ...; "codec 9" for numbers that are not known here; empty for 0: a node that has
// started again does not know of what is on its disk.
std::string CodecName(std::uint8_t codec);

}  // namespace penstock::coordinator
