// SPDX-License-Identifier: Apache-2.0
// How the units of a group go between two workers whose slabs lie in parts on several GPUs: each has
// consecutive cache layers (pipeline stages) and some heads of each (tensor parallel shards), and
// where there are more shards than KV heads several have the same. Computed once per pair of
// workers, from how both are split; which GPUs meet, and so need a lane, follows from it.
//
// A unit, one cache layer of one block, goes in legs: from one part of the sender to one of the
// receiver, heads that both have. Every part of the receiver gets each of its heads in one leg,
// replicas of a head from different replicas at the sender in turn. Each leg has its own checksum.
//
// Plain values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "transfer/plan.h"

namespace penstock::transfer {

// What one GPU has of a group's slabs, each of which is [layers, kv_heads] of whole pages there.
struct SlabPart {
  std::int32_t first_layer = 0;  // Cache layer of the group.
  std::int32_t layers = 0;       // 0: none, and no heads.
  std::int32_t head_begin = 0;   // Of the model's.
  std::int32_t kv_heads = 0;

  std::int32_t end_layer() const { return first_layer + layers; }
  bool Has(std::int32_t layer) const { return layer >= first_layer && layer < end_layer(); }
  bool HasHead(std::int32_t head) const {
    return head >= head_begin && head < head_begin + kv_heads;
  }
};
// The one part of a slab that is not split.
SlabPart WholeOf(const SideLayout& side);

class SplitPlan {
 public:
  struct Leg {
    std::size_t from = 0;  // Numbers of the parts.
    std::size_t to = 0;
    std::int32_t from_first = 0;  // Their first layers.
    std::int32_t to_first = 0;
    LayerPlan plan;

    // Where the layer begins in slabs of those parts.
    std::uint64_t FromOffset(std::int32_t layer) const {
      return plan.FromOffset(layer - from_first);
    }
    std::uint64_t ToOffset(std::int32_t layer) const { return plan.ToOffset(layer - to_first); }
  };

  // At most so many legs has a unit.
  static constexpr std::size_t kLegsMax = 128;

  // `from` and `to`: the parts of each side, at least one. FAILED_PRECONDITION: as LayerPlan::Make;
  // a layer and head of the receiver's that no part of the sender has (both numbers), a layer that
  // no part of the receiver has, or more legs than kLegsMax.
  static absl::StatusOr<SplitPlan> Make(const SideLayout& sender, std::span<const SlabPart> from,
                                        const SideLayout& receiver, std::span<const SlabPart> to);

  // Of a cache layer that the group has, in the order in which their checksums are told.
  std::span<const Leg> LegsOf(std::int32_t layer) const;
  // That go over all legs.
  std::size_t UnitBytes(std::int32_t layer) const;
  std::size_t BlockBytes() const;
  // The most that a unit has.
  std::size_t legs_max() const;

 private:
  // Layers whose legs are the same, up to the next one's begin.
  struct Section {
    std::int32_t begin = 0;
    std::int32_t end = 0;
    std::vector<Leg> legs;
  };
  const Section& SectionOf(std::int32_t layer) const;

  std::vector<Section> sections_;  // Ascending; all layers of the group.
};

}  // namespace penstock::transfer
