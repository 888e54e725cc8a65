// SPDX-License-Identifier: Apache-2.0
#include "coordinator/holder_sets.h"

#include <algorithm>

namespace penstock::coordinator {

HolderSets::Set HolderSets::Replace(Set set, std::span<const SetHolder> holders) {
  if (std::ranges::equal(of(set), holders)) return set;
  Set to = kNobody;
  if (!holders.empty()) {
    if (const auto found = index_.find(holders); found != index_.end()) {
      to = *found;
    } else {
      if (free_.empty()) {
        free_.push_back(static_cast<Set>(entries_.size()));
        entries_.emplace_back();
      }
      to = free_.back();
      free_.pop_back();
      Entry& entry = entries_[to];
      entry.count = static_cast<std::uint32_t>(holders.size());
      entry.holders = std::make_unique<SetHolder[]>(holders.size());
      std::ranges::copy(holders, entry.holders.get());
      index_.insert(to);
    }
    ++entries_[to].refs;
  }
  if (set != kNobody) Drop(set);
  return to;
}

void HolderSets::Drop(Set set) {
  if (--entries_[set].refs > 0) return;
  index_.erase(set);
  entries_[set] = Entry();
  free_.push_back(set);
}

}  // namespace penstock::coordinator
