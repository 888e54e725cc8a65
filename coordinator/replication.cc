// SPDX-License-Identifier: Apache-2.0
#include "coordinator/replication.h"

#include <algorithm>

namespace penstock::coordinator {

Replication::Range Replication::Count(std::span<const Chain> chains, MonoTime now) {
  if (now >= window_end_) {
    // What is on its way is then asked for again at most once: its node passes it over.
    blocks_.clear();
    window_end_ = now + options_.window;
  }
  Range range;
  bool found = false, ended = false;
  for (std::size_t i = 0; i < chains.size(); ++i) {
    if (blocks_.size() >= options_.blocks_max && !blocks_.contains(chains[i])) break;
    Block& block = blocks_[chains[i]];
    ++block.fetches;
    const bool wanted = block.fetches >= options_.fetches_min && !block.asked;
    if (wanted && !found) range.first = i;
    if (wanted && !ended) range.end = i + 1;
    ended = ended || (found && !wanted);
    found = found || wanted;
  }
  return range;
}

bool Replication::Ask(std::span<const Chain> chains, std::uint64_t bytes, MonoTime now) {
  const auto most = static_cast<double>(options_.bytes_per_s);
  const double seconds = budget_at_ == MonoTime::min() ? 1 : ToSeconds(now - budget_at_);
  budget_bytes_ = std::min(most, budget_bytes_ + most * seconds);
  budget_at_ = now;
  // One that is larger than all goes when nothing else did for a second.
  if (budget_bytes_ < std::min(most, static_cast<double>(bytes))) return false;
  budget_bytes_ -= static_cast<double>(bytes);
  for (const Chain& chain : chains) blocks_[chain].asked = true;
  return true;
}

}  // namespace penstock::coordinator
