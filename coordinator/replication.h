// SPDX-License-Identifier: Apache-2.0
// Which blocks are to have another holder, so that no node is a hot spot: those that plans fetch again
// and again from a node which gives more than a share of what it can, while another has room.
//
// Counts are of what was planned, not of what moved: they are there when the next plan is made. Blocks
// are counted only while their node is hot; so a cluster at rest pays nothing.
//
// Bounded: holders of a block, bytes a second that are asked for in all, blocks that are counted. What
// is asked for is not asked for again for a while, whatever became of it. A copy too many goes as all
// copies do: nobody asks for it, and its node lets go of it.
//
// Owned by the coordinator's loop; not thread-safe. No clock; the same calls give the same answers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/container/flat_hash_map.h"
#include "base/key.h"
#include "base/time.h"

namespace penstock::coordinator {

class Replication {
 public:
  struct Options {
    bool on = true;
    double hot_share = 0.5;         // Of what one reader alone gets from the node.
    double cold_share = 0.5;        // Of the hot node's rate, at most, to be given copies.
    std::uint32_t fetches_min = 3;  // Of a block, within `window`.
    std::uint32_t holders_max = 3;  // With the new one.
    Duration window = std::chrono::seconds(10);
    std::uint64_t bytes_per_s = std::uint64_t{256} << 20;  // In all; a second's worth at once.
    std::size_t blocks_max = std::size_t{1} << 16;         // Counted within a window.
    Duration within = std::chrono::seconds(10);            // Of a copy.
  };
  // Blocks [first, end) of those that were given.
  struct Range {
    std::size_t first = 0;
    std::size_t end = 0;
    bool empty() const { return first >= end; }
  };

  explicit Replication(const Options& options) : options_(options) {}
  const Options& options() const { return options_; }

  // Whether a node gives too much, at this rate, of what a reader alone would get from it.
  bool IsHot(double bytes_per_s, double alone_bytes_per_s) const {
    return options_.on && bytes_per_s > options_.hot_share * alone_bytes_per_s;
  }
  // A plan fetches these blocks, in order, from a hot node. Those of them that follow each other, were
  // fetched often enough, and are not on their way already; the first such.
  Range Count(std::span<const Chain> chains, MonoTime now);
  // They are asked for. False: too many bytes were, lately; then they are not.
  bool Ask(std::span<const Chain> chains, std::uint64_t bytes, MonoTime now);

 private:
  struct Block {
    std::uint32_t fetches = 0;
    bool asked = false;
  };
  const Options options_;
  absl::flat_hash_map<Chain, Block> blocks_;  // Never walked.
  MonoTime window_end_ = MonoTime::min();
  double budget_bytes_ = 0;
  MonoTime budget_at_ = MonoTime::min();
};

}  // namespace penstock::coordinator
