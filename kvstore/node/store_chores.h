// SPDX-License-Identifier: Apache-2.0
// What operators ask of a store node that takes long: checking all copies, emptying host memory or all
// tiers. Each goes on in steps of about a millisecond, with pauses between them thrice as long, so that
// others get their turn; copies that come meanwhile may be missed.
//
// On the tiers' loop; they outlive it. What is asked ends with `done`, once, not from inside: or never,
// if the chores end before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/time.h"
#include "kvstore/node/tier_set.h"
#include "transfer/life.h"

namespace penstock::kvstore {

class StoreChores {
 public:
  static constexpr std::size_t kChoresMax = 8;  // At once.

  struct Sum {
    std::uint64_t copies = 0;      // Seen so far.
    std::uint64_t bytes = 0;       // Read, or let go of.
    std::uint64_t damaged = 0;     // And dropped.
    std::uint64_t unread = 0;      // That a tier did not give.
    std::uint64_t deleted = 0;     // For good.
    std::uint64_t copies_max = 0;  // In all, as it was at the beginning.
  };
  struct Asked {
    std::function<bool()> wanted = nullptr;  // Asked now and then: false ends it, as CANCELLED.
    std::function<void(const Sum& sum)> on_progress = nullptr;  // Now and then; may be empty.
    // RESOURCE_EXHAUSTED: kChoresMax run. Of a deletion, the first error of a tier.
    std::function<void(const absl::Status& status, const Sum& sum)> done = nullptr;
  };

  StoreChores(Loop& loop, TierSet& tiers);
  ~StoreChores();

  void Verify(Asked asked);
  // Host memory; what it lets go of has reached the tier below, where there is one, when this is done.
  void Flush(Asked asked);
  void DeleteAll(Asked asked);
  std::size_t running() const { return running_.size(); }

 private:
  struct Chore;
  using Step = void (StoreChores::*)(Chore& chore);

  void Begin(Asked asked, Step step);
  void Run(Chore& chore);
  void Pause(Chore& chore);
  void End(Chore& chore, const absl::Status& status);
  // The next copy by name; null: that was the last.
  const TierSet::Listed* Next(Chore& chore);
  void VerifyStep(Chore& chore);
  void FlushStep(Chore& chore);
  void DeleteStep(Chore& chore);

  Loop& loop_;
  TierSet& tiers_;
  std::vector<std::unique_ptr<Chore>> running_;
  transfer::Life life_;
};

}  // namespace penstock::kvstore
