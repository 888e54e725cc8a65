// SPDX-License-Identifier: Apache-2.0
#include "coordinator/membership.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::coordinator {
namespace {

absl::Status CheckPositive(std::string_view field, double value) {
  if (std::isfinite(value) && value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be finite and above 0, got ", value));
}

absl::Status CheckFields(const Registration& r) {
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  const auto of = [](std::uint64_t value) {
    return static_cast<std::int64_t>(std::min<std::uint64_t>(value, INT64_MAX));
  };
  RETURN_IF_ERROR(CheckRange("worker.name bytes", of(r.ref.name.size()), 1, 64));
  RETURN_IF_ERROR(CheckRange("worker.epoch", of(r.ref.epoch), 1, INT64_MAX));
  const bool store = r.role == Role::kStore;
  RETURN_IF_ERROR(
      CheckRange("worker.model bytes", of(r.model.size()), store ? 0 : 1, store ? 0 : 256));
  RETURN_IF_ERROR(CheckRange("worker.endpoint bytes", of(r.endpoint.size()), 0, 1024));
  RETURN_IF_ERROR(CheckRange("worker.transfer_address bytes", of(r.transfer_address.size()),
                             store ? 1 : 0, 4096));
  RETURN_IF_ERROR(CheckRange("worker.context_tokens", r.context_tokens, 0, 1 << 30));
  RETURN_IF_ERROR(CheckRange("worker.device bytes", of(r.device.size()), 0, 256));
  RETURN_IF_ERROR(CheckRange("worker.identity fields", of(r.identity.size()), 0, 64));
  for (const auto& [name, value] : r.identity) {
    RETURN_IF_ERROR(
        CheckRange("worker.identity bytes of a field", of(name.size() + value.size()), 0, 1024));
  }
  if (store) return absl::OkStatus();
  RETURN_IF_ERROR(CheckRange("worker.groups", of(r.groups.size()), 0, 64));
  for (const StoredGroup& group : r.groups) {
    RETURN_IF_ERROR(CheckRange("worker.groups.window_tokens", group.window_tokens, 0, 1 << 30));
    RETURN_IF_ERROR(CheckRange("worker.groups.block_bytes", of(group.block_bytes), 1, kMost));
  }
  RETURN_IF_ERROR(CheckRange("worker.block_tokens", r.block_tokens, 1, 1 << 16));
  RETURN_IF_ERROR(CheckRange("worker.kv_bytes_per_token", of(r.kv_bytes_per_token), 1, kMost));
  RETURN_IF_ERROR(CheckRange("worker.blocks_total", of(r.blocks_total), 1, kMost));
  RETURN_IF_ERROR(CheckRange("worker.sequences_max", r.sequences_max,
                             r.role == Role::kDecode ? 1 : 0, 1 << 20));
  RETURN_IF_ERROR(CheckPositive("worker.prefill_tokens_per_s", r.prefill_tokens_per_s));
  RETURN_IF_ERROR(CheckPositive("worker.link_bytes_per_s", r.link_bytes_per_s));
  return CheckPositive("worker.step_seconds", r.step_seconds);
}

// Both values, and who has which.
absl::Status CheckAlike(const Registration& ours, const Registration& theirs) {
  const auto unlike = [&](std::string_view field, const auto& a, const auto& b) {
    if (a == b) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("workers of model '", ours.model, "' must agree on ", ToAbsl(field), ": '",
                     ours.ref.name, "' has '", a, "', '", theirs.ref.name, "' has '", b, "'"));
  };
  const Identity& a = ours.identity;
  const Identity& b = theirs.identity;
  for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    static const std::pair<std::string, std::string> kNone = {"(no more fields)", ""};
    const auto& mine = i < a.size() ? a[i] : kNone;
    const auto& other = i < b.size() ? b[i] : kNone;
    RETURN_IF_ERROR(unlike("fields of identity", mine.first, other.first));
    RETURN_IF_ERROR(unlike(mine.first, mine.second, other.second));
  }
  RETURN_IF_ERROR(unlike("block_tokens", ours.block_tokens, theirs.block_tokens));
  return unlike("kv_bytes_per_token", ours.kv_bytes_per_token, theirs.kv_bytes_per_token);
}

absl::Status CheckGroups(const Registration& ours, const Registration& theirs) {
  if (ours.groups.empty() || theirs.groups.empty() || ours.groups == theirs.groups) {
    return absl::OkStatus();
  }
  const auto text = [](const Registration& r) {
    return absl::StrJoin(r.groups, ", ", [](std::string* out, const StoredGroup& group) {
      absl::StrAppend(out, ToHex(group.copy_spaces[0].bytes), " of ", group.block_bytes,
                      " bytes, window ", group.window_tokens);
    });
  };
  return absl::FailedPreconditionError(
      absl::StrCat("workers of model '", ours.model, "' must agree on groups: '", ours.ref.name,
                   "' has '", text(ours), "', '", theirs.ref.name, "' has '", text(theirs), "'"));
}

// The host of "shm:HOST-ID:PATH", wherever in the list of addresses it stands.
std::uint64_t HostOf(std::string_view address) {
  constexpr std::string_view kShm = "shm:";
  while (!address.empty()) {
    const std::string_view one = address.substr(0, address.find(','));
    address.remove_prefix(std::min(address.size(), one.size() + 1));
    if (one.substr(0, kShm.size()) != kShm) continue;
    const std::string_view rest = one.substr(kShm.size());
    return std::hash<std::string_view>()(rest.substr(0, rest.find(':'))) | 1;
  }
  return 0;
}

}  // namespace

absl::Status Membership::Check(const Registration& registration) const {
  RETURN_IF_ERROR(CheckFields(registration));
  const WorkerRef& ref = registration.ref;
  const WorkerId lives = Find(ref.name);
  std::uint64_t last = 0;
  if (lives != kNoWorker) {
    last = at(lives).info.ref.epoch;
    if (last == ref.epoch) return absl::OkStatus();
  } else if (const auto ended = ended_.find(ref.name); ended != ended_.end()) {
    last = ended->second;
  }
  if (ref.epoch <= last) {
    return absl::AbortedError(absl::StrCat("worker '", ref.name, "' was seen in epoch ", last,
                                           ", got epoch ", ref.epoch,
                                           ": register with a higher one"));
  }
  if (lives == kNoWorker && live() >= options_.workers_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("workers_max is ", options_.workers_max, ", and ", live(), " live"));
  }
  const auto model = models_.find(registration.model);
  if (model == models_.end()) return absl::OkStatus();  // Store nodes, too.
  // It replaces the only one: its model may be another.
  if (model->second.workers == 1 && lives != kNoWorker &&
      at(lives).info.model == registration.model) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckAlike(registration, model->second.first));
  return CheckGroups(registration, model->second.grouped);
}

WorkerId Membership::Add(const Registration& registration, MonoTime now) {
  CHECK(Find(registration.ref.name) == kNoWorker);
  if (free_.empty()) {
    free_.insert(static_cast<std::uint32_t>(workers_.size()));
    workers_.emplace_back();
  }
  const WorkerId id{*free_.begin()};
  free_.erase(free_.begin());
  Worker& worker = at(id);
  worker = Worker();
  worker.id = id;
  worker.live = true;
  worker.session_end = now + options_.ttl;
  worker.info = registration;
  worker.blocks_total = registration.blocks_total;
  worker.sequences_max = registration.sequences_max;
  worker.prefill_tokens_per_s = registration.prefill_tokens_per_s;
  worker.link_bytes_per_s = registration.link_bytes_per_s;
  worker.step_seconds = registration.step_seconds;
  worker.host = HostOf(registration.transfer_address);
  by_name_.emplace(registration.ref.name, id);
  expiries_.emplace(worker.session_end, id);
  if (registration.role == Role::kStore) return id;
  Model& model = models_[registration.model];
  if (model.workers++ == 0) model.first = registration;
  if (model.grouped.groups.empty()) model.grouped = registration;
  return id;
}

void Membership::End(WorkerId id) {
  Worker& worker = at(id);
  CHECK(worker.live);
  const WorkerRef& ref = worker.info.ref;
  by_name_.erase(ref.name);
  expiries_.erase({worker.session_end, id});
  if (const auto model = models_.find(worker.info.model); model != models_.end()) {
    if (--model->second.workers == 0) models_.erase(model);
  }
  Restore(ref);
  free_.insert(static_cast<std::uint32_t>(IndexOf(id)));
  worker = Worker();
}

void Membership::Restore(const WorkerRef& ended) {
  const auto [known, is_new] = ended_.emplace(ended.name, ended.epoch);
  known->second = std::max(known->second, ended.epoch);
  if (is_new) ended_order_.push_back(ended.name);
  while (ended_order_.size() > options_.ended_max) {
    ended_.erase(ended_order_.front());
    ended_order_.pop_front();
  }
}

absl::StatusOr<WorkerId> Membership::Resolve(const WorkerRef& ref) const {
  const WorkerId id = Find(ref.name);
  if (id == kNoWorker) {
    return absl::AbortedError(absl::StrCat("worker '", ref.name, "' has no session; epoch ",
                                           ref.epoch, " has ended or never began: register"));
  }
  if (at(id).info.ref.epoch != ref.epoch) {
    return absl::AbortedError(absl::StrCat("worker '", ref.name, "' lives in epoch ",
                                           at(id).info.ref.epoch, ", the message is of epoch ",
                                           ref.epoch));
  }
  return id;
}

WorkerId Membership::Find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? kNoWorker : found->second;
}

void Membership::Renew(WorkerId id, MonoTime now) {
  Worker& worker = at(id);
  const MonoTime end = std::max(worker.session_end, now + options_.ttl);
  expiries_.erase({worker.session_end, id});
  expiries_.emplace(end, id);
  worker.session_end = end;
}

WorkerId Membership::FirstExpired(MonoTime now) const {
  return NextExpiry() <= now ? expiries_.begin()->second : kNoWorker;
}

MonoTime Membership::NextExpiry() const {
  return expiries_.empty() ? MonoTime::max() : expiries_.begin()->first;
}

}  // namespace penstock::coordinator
