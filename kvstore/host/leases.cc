// SPDX-License-Identifier: Apache-2.0
#include "kvstore/host/leases.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace penstock::kvstore {

absl::StatusOr<LeaseId> Leases::Grant(std::uint64_t promised, MonoTime now) {
  Forward(now);
  if (live_.size() >= leases_max_) {
    return absl::ResourceExhaustedError(
        absl::StrCat(live_.size(), " leases are live, of ", leases_max_, " at most"));
  }
  const LeaseId id{++granted_};
  places_.emplace(id, live_.insert(live_.end(), {id, promised, now + lease_}));
  return id;
}

absl::Status Leases::Renew(LeaseId lease, MonoTime now) {
  Forward(now);
  const auto found = places_.find(lease);
  if (found == places_.end() || found->second->end <= now) {
    return absl::FailedPreconditionError("the lease ended; look the copy up again");
  }
  found->second->end = now + lease_;
  live_.splice(live_.end(), live_, found->second);
  return absl::OkStatus();
}

std::optional<std::uint64_t> Leases::End(LeaseId lease) {
  const auto found = places_.find(lease);
  if (found == places_.end()) return std::nullopt;
  const std::uint64_t promised = found->second->promised;
  live_.erase(found->second);
  places_.erase(found);
  return promised;
}

std::optional<std::uint64_t> Leases::PopEnded(MonoTime now) {
  Forward(now);
  if (next() > now || live_.empty()) return std::nullopt;
  return End(live_.front().id);
}

void Leases::Forward(MonoTime now) {
  CHECK(now >= now_);
  now_ = now;
}

}  // namespace penstock::kvstore
