// SPDX-License-Identifier: Apache-2.0
// Memory of frames on their way between tiers, outside host memory; for the parts of TierSet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <utility>

#include "kvstore/node/tier_set.h"

namespace penstock::kvstore {

// Whole pages, of any content. It may outlive the tiers.
struct TierSet::Moving {
  Moving(TierSet& tiers, std::byte* memory, std::size_t memory_bytes)
      : life_(tiers.life_.watch()), tiers_(tiers), memory_(memory), bytes_(memory_bytes) {
    tiers_.moving_bytes_ += bytes_;
  }
  ~Moving() {
    if (!life_.over()) tiers_.moving_bytes_ -= bytes_;
  }
  Moving(const Moving&) = delete;
  Moving& operator=(const Moving&) = delete;
  std::span<std::byte> bytes() const { return {memory_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  const transfer::Life::Watch life_;
  TierSet& tiers_;
  const std::unique_ptr<std::byte, Free> memory_;
  const std::size_t bytes_;
};

}  // namespace penstock::kvstore
