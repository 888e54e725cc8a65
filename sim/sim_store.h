// SPDX-License-Identifier: Apache-2.0
// A store node in the simulator: keeps names of copies, tells the coordinator of them, and forgets
// some. Its part in the cluster follows the real node's; bytes, tiers and their checks are tested
// where they are.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sim/sim_worker.h"

namespace penstock::sim {

class SimStore final : public SimWorker {
 public:
  SimStore(World& world, const std::string& name);

  std::string Held() const override { return ""; }
  std::uint64_t epoch() const { return epoch_; }
  // Of a chain's leading blocks; now, or never.
  void Keep(const std::vector<Chain>& chains);
  // Whether all groups of this block are here, as far as a window has to.
  bool Has(const Chain& chain) const;

 private:
  static constexpr std::size_t kCopiesMax = 200;
  std::vector<CopyEvent> All() const;
  // They come from another node, unless they do not.
  void Copy(const coordinator::ReplicateAction& action);
  CopyEvent Stored(const CopyName& name) const;

  struct Kept {
    Tier tier = Tier::kHost;
    std::optional<CopyName> parent = {};
  };
  std::map<CopyName, Kept> copies_;
};

}  // namespace penstock::sim
