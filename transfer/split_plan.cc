// SPDX-License-Identifier: Apache-2.0
#include "transfer/split_plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {
namespace {

// The part's heads as a layout of their own, of the whole's layers, so that layers of both sides
// compare.
SideLayout LayoutOf(const SideLayout& whole, const SlabPart& part) {
  SideLayout own = whole;
  own.head_begin = part.head_begin;
  own.layout.group.kv_heads = part.kv_heads;
  return own;
}

// Where a new set of layers begins, on either side, and the end of all.
std::set<std::int32_t> Borders(const SideLayout& side, std::span<const SlabPart> from,
                               std::span<const SlabPart> to) {
  std::set<std::int32_t> borders = {0, side.layout.group.cache_layers};
  for (const std::span<const SlabPart> parts : {from, to}) {
    for (const SlabPart& part : parts) {
      borders.insert(std::clamp(part.first_layer, 0, side.layout.group.cache_layers));
      borders.insert(std::clamp(part.end_layer(), 0, side.layout.group.cache_layers));
    }
  }
  return borders;
}

// Of the parts that have that layer and head one: another one for another `reader`.
absl::StatusOr<std::size_t> HolderOf(std::span<const SlabPart> parts, std::int32_t layer,
                                     std::int32_t head, std::size_t reader) {
  std::vector<std::size_t> holders;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    if (parts[p].Has(layer) && parts[p].HasHead(head)) holders.push_back(p);
  }
  if (!holders.empty()) return holders[reader % holders.size()];
  return absl::FailedPreconditionError(absl::StrCat("no GPU of the sender has KV head ", head,
                                                    " of cache layer ", layer, " of a group"));
}

}  // namespace

SlabPart WholeOf(const SideLayout& side) {
  return {.first_layer = 0,
          .layers = side.layout.group.cache_layers,
          .head_begin = side.head_begin,
          .kv_heads = side.layout.group.kv_heads};
}

absl::StatusOr<SplitPlan> SplitPlan::Make(const SideLayout& sender, std::span<const SlabPart> from,
                                          const SideLayout& receiver,
                                          std::span<const SlabPart> to) {
  // Whether they can exchange KV at all.
  RETURN_IF_ERROR(LayerPlan::Make(sender, receiver).status());
  SplitPlan split;
  const std::set<std::int32_t> borders = Borders(receiver, from, to);
  for (auto at = borders.begin(); std::next(at) != borders.end(); ++at) {
    Section section = {.begin = *at, .end = *std::next(at), .legs = {}};
    for (std::size_t reader = 0; reader < to.size(); ++reader) {
      const SlabPart& wants = to[reader];
      if (!wants.Has(section.begin)) continue;
      for (std::int32_t head = wants.head_begin; wants.HasHead(head);) {
        ASSIGN_OR_RETURN(const std::size_t p, HolderOf(from, section.begin, head, reader));
        const LayerPlan::Heads heads = {head, std::min(wants.head_begin + wants.kv_heads,
                                                       from[p].head_begin + from[p].kv_heads)};
        ASSIGN_OR_RETURN(LayerPlan plan, LayerPlan::Make(LayoutOf(sender, from[p]),
                                                         LayoutOf(receiver, wants), heads));
        if (section.legs.size() == kLegsMax) {
          return absl::FailedPreconditionError(
              absl::StrCat("a layer of a block would go in more than ", kLegsMax, " legs"));
        }
        section.legs.push_back({.from = p,
                                .to = reader,
                                .from_first = from[p].first_layer,
                                .to_first = wants.first_layer,
                                .plan = std::move(plan)});
        head = heads.end;
      }
    }
    if (section.legs.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("no GPU of the receiver has cache layer ", section.begin, " of a group"));
    }
    split.sections_.push_back(std::move(section));
  }
  return split;
}

const SplitPlan::Section& SplitPlan::SectionOf(std::int32_t layer) const {
  const auto found =
      std::ranges::find_if(sections_, [&](const Section& s) { return layer < s.end; });
  CHECK(layer >= 0 && found != sections_.end());
  return *found;
}

std::span<const SplitPlan::Leg> SplitPlan::LegsOf(std::int32_t layer) const {
  return SectionOf(layer).legs;
}

std::size_t SplitPlan::UnitBytes(std::int32_t layer) const {
  std::size_t bytes = 0;
  for (const Leg& leg : SectionOf(layer).legs) bytes += leg.plan.unit_bytes();
  return bytes;
}

std::size_t SplitPlan::BlockBytes() const {
  std::size_t bytes = 0;
  for (const Section& section : sections_) {
    bytes += UnitBytes(section.begin) * static_cast<std::size_t>(section.end - section.begin);
  }
  return bytes;
}

std::size_t SplitPlan::legs_max() const {
  std::size_t most = 0;
  for (const Section& section : sections_) most = std::max(most, section.legs.size());
  return most;
}

}  // namespace penstock::transfer
