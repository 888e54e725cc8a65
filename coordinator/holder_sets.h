// SPDX-License-Identifier: Apache-2.0
// Who holds a block, for the store index: sets of holders, each kept once, however many blocks have
// it. Blocks that were stored together mostly have equal ones.
//
// Owned by its index; not thread-safe.
#pragma once

#include <algorithm>
#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "absl/types/span.h"
#include "base/copy_event.h"
#include "coordinator/lives.h"

namespace penstock::coordinator {

// Bytes in eight steps an octave, so that blocks whose copies are nearly as large are held alike.
constexpr std::uint8_t SizeCode(std::uint32_t bytes) {
  if (bytes < 8) return static_cast<std::uint8_t>(bytes);
  const int shift = std::bit_width(bytes) - 4;
  return static_cast<std::uint8_t>(shift * 8 + static_cast<int>(bytes >> shift));
}
// The middle of what has that code: within a sixteenth of what was coded.
constexpr std::uint32_t SizeOfCode(std::uint8_t code) {
  if (code < 8) return code;
  const int shift = (code - 8) / 8;
  return (static_cast<std::uint32_t>(8 + code % 8) << shift) + ((1u << shift) >> 1);
}

// One copy of a block.
struct SetHolder {
  Lives::Column column = 0;
  Tier tier = Tier::kHost;
  std::uint8_t codec = 0;
  std::uint8_t size = 0;  // SizeCode.

  auto operator<=>(const SetHolder&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const SetHolder& s) {
    return H::combine(std::move(h), s.column, static_cast<int>(s.tier), s.codec, s.size);
  }
};

class HolderSets {
 public:
  using Set = std::uint32_t;
  static constexpr Set kNobody = 0;

  HolderSets() : entries_(1), index_(0, ByContent{this}, ByContent{this}) {}
  HolderSets(const HolderSets&) = delete;

  // By column, each once.
  std::span<const SetHolder> of(Set set) const {
    return {entries_[set].holders.get(), entries_[set].count};
  }
  // A reference to `holders`, by column, in place of one to `set` (kNobody: of none before).
  Set Replace(Set set, std::span<const SetHolder> holders);
  bool Has(std::span<const SetHolder> holders) const { return index_.contains(holders); }
  std::size_t size() const { return index_.size(); }

 private:
  struct Entry {
    std::uint32_t refs = 0;
    std::uint32_t count = 0;
    std::unique_ptr<SetHolder[]> holders;
  };
  struct ByContent {
    using is_transparent = void;
    const HolderSets* sets;
    std::span<const SetHolder> Of(Set set) const { return sets->of(set); }
    static std::span<const SetHolder> Of(std::span<const SetHolder> holders) { return holders; }
    std::size_t operator()(const auto& x) const {
      return absl::HashOf(absl::Span<const SetHolder>(Of(x).data(), Of(x).size()));
    }
    bool operator()(const auto& a, const auto& b) const { return std::ranges::equal(Of(a), Of(b)); }
  };
  void Drop(Set set);

  std::vector<Entry> entries_;
  std::vector<Set> free_;
  absl::flat_hash_set<Set, ByContent, ByContent> index_;
};

}  // namespace penstock::coordinator
