// SPDX-License-Identifier: Apache-2.0
// Leases of a tier: promises to other processes, all of the same length, that end by themselves.
// What is promised is a number of the owner's.
//
// Every call O(1). Owned by a tier; not thread-safe. `now` must not go back (CHECKed).
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/time.h"

namespace penstock::kvstore {

enum class LeaseId : std::uint64_t {};  // Never 0, and never given twice by one tier.

class Leases {
 public:
  Leases(Duration lease, std::size_t leases_max) : lease_(lease), leases_max_(leases_max) {}

  // Until now + lease. RESOURCE_EXHAUSTED when leases_max are live.
  absl::StatusOr<LeaseId> Grant(std::uint64_t promised, MonoTime now);
  // FAILED_PRECONDITION: it was taken out; or `now` is its end or later.
  absl::Status Renew(LeaseId lease, MonoTime now);
  // Takes one out; nothing: there is no such one any more.
  std::optional<std::uint64_t> End(LeaseId lease);
  // Takes out one that ended by `now`; nothing: there is none left.
  std::optional<std::uint64_t> PopEnded(MonoTime now);

  Duration lease() const { return lease_; }
  MonoTime next() const { return live_.empty() ? MonoTime::max() : live_.front().end; }
  std::size_t size() const { return live_.size(); }

 private:
  struct Live {
    LeaseId id;
    std::uint64_t promised;
    MonoTime end;
  };
  void Forward(MonoTime now);

  const Duration lease_;
  const std::size_t leases_max_;
  MonoTime now_ = MonoTime::min();
  std::uint64_t granted_ = 0;
  std::list<Live> live_;  // By end: all are of one length, and renewed ones go to the back.
  absl::flat_hash_map<LeaseId, std::list<Live>::iterator> places_;
};

}  // namespace penstock::kvstore
