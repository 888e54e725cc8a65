// SPDX-License-Identifier: Apache-2.0
#include "coordinator/durable_state.h"

#include <algorithm>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "nlohmann/json.hpp"

namespace penstock::coordinator {
namespace {

using rpc::EtcdGranted;
using rpc::EtcdKey;
using rpc::EtcdOp;
using rpc::EtcdTxn;
using rpc::EtcdTxnResult;

// Of one transaction: etcd takes 128 operations, and a worker has two keys.
constexpr std::size_t kNamesMax = 60;
constexpr std::size_t kNameBytesMax = 64;
// In a row, each of a batch in which another lease has ended by itself.
constexpr int kRenewalsMax = 8;

std::string ToJson(const Registration& from) {
  const nlohmann::ordered_json json = {{"role", ToString(from.role)},
                                       {"model", from.model},
                                       {"endpoint", from.endpoint},
                                       {"session_epoch", from.ref.epoch},
                                       {"transfer_epoch", from.transfer_epoch},
                                       {"transfer_address", from.transfer_address}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::optional<Registration> FromJson(const std::string& name, const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return std::nullopt;
  const auto text_of = [&](const char* key) {
    const auto at = json.find(key);
    return at != json.end() && at->is_string() ? at->get<std::string>() : std::string();
  };
  const auto epoch = json.find("session_epoch");
  const std::string role = text_of("role");
  const Role roles[] = {Role::kPrefill, Role::kDecode, Role::kStore};
  const auto known = std::ranges::find(roles, role, [](Role r) { return ToString(r); });
  if (epoch == json.end() || !epoch->is_number_unsigned() || known == std::end(roles)) {
    return std::nullopt;
  }
  Registration r;
  r.ref = {name, epoch->get<std::uint64_t>()};
  r.role = *known;
  r.model = text_of("model");
  r.endpoint = text_of("endpoint");
  r.transfer_address = text_of("transfer_address");
  return r;
}

}  // namespace

DurableState::DurableState(Loop& loop, rpc::Etcd& etcd, Options options,
                           std::function<void()> fenced)
    : loop_(loop),
      etcd_(etcd),
      options_(std::move(options)),
      fenced_(std::move(fenced)),
      pause_(options_.retry_min) {}

DurableState::~DurableState() {
  *self_ = nullptr;
  loop_.CancelTimer(timer_);
}

void DurableState::Load(std::int64_t leader_revision,
                        std::function<void(absl::StatusOr<Loaded>)> done) {
  etcd_.Txn({.when = {{.key = options_.leader_key, .created = leader_revision}},
             .then = {{.kind = EtcdOp::Kind::kGetPrefix, .key = options_.prefix + "epochs/"},
                      {.kind = EtcdOp::Kind::kGetPrefix, .key = options_.prefix + "workers/"}}},
            [self = self_, leader_revision,
             done = std::move(done)](const absl::StatusOr<EtcdTxnResult>& result) {
              if (*self == nullptr) return;
              if (!result.ok()) {
                ++(*self)->errors_;
                return done(result.status());
              }
              if (!result->held) return done(absl::AbortedError("another coordinator leads"));
              (*self)->leader_revision_ = leader_revision;
              done((*self)->Merge(result->found));
              if (*self != nullptr) (*self)->Flush();
            });
}

DurableState::Loaded DurableState::Merge(const std::vector<EtcdKey>& found) {
  Loaded loaded;
  const std::string epochs = options_.prefix + "epochs/", workers = options_.prefix + "workers/";
  for (auto& [name, entry] : entries_) entry.stored = 0;
  std::vector<const EtcdKey*> oldest_first;
  for (const EtcdKey& key : found) oldest_first.push_back(&key);
  std::ranges::stable_sort(oldest_first, {}, &EtcdKey::modified);
  for (const EtcdKey* key : oldest_first) {
    const bool of_epoch = absl::StartsWith(key->key, epochs);
    const std::string name = key->key.substr((of_epoch ? epochs : workers).size());
    std::uint64_t epoch = 0;
    std::optional<Registration> worker;
    if (!of_epoch) worker = FromJson(name, key->value);
    const bool good = of_epoch ? absl::SimpleAtoi(key->value, &epoch) : worker.has_value();
    if (!good || name.empty() || name.size() > kNameBytesMax) {
      LOG_WARNING("store has what makes no sense", {{"key", key->key}});
      continue;
    }
    if (worker.has_value()) {
      loaded.workers.push_back(*std::move(worker));
      continue;
    }
    Entry& entry = entries_[name];
    entry.stored = epoch;
    entry.ended = std::max(entry.ended, epoch);
    if (entry.epoch == 0) SetIdle(name, entry, true);
  }
  for (auto& [name, entry] : entries_) {
    loaded.ended.push_back({name, entry.ended});
    if (entry.epoch == 0 && entry.stored == entry.ended) continue;
    entry.lease = 0;  // It may have ended meanwhile.
    Change(name, entry);
  }
  return loaded;
}

bool DurableState::IsDurable(const WorkerRef& ref) const {
  const auto at = entries_.find(ref.name);
  return ref.epoch <= (at == entries_.end() ? 0 : at->second.stored) + 1;
}

void DurableState::Began(const Registration& registration, std::function<void()> done) {
  const WorkerRef& ref = registration.ref;
  Entry& entry = entries_[ref.name];
  if (entry.epoch <= ref.epoch && entry.ended < ref.epoch) {
    entry.ended = ref.epoch - 1;
    entry.epoch = ref.epoch;
    entry.value = ToJson(registration);
    SetIdle(ref.name, entry, false);
  }
  if (done != nullptr) {
    if (away_) {
      ++late_;
      loop_.Post([self = self_, done = std::move(done)] {
        if (*self != nullptr) done();
      });
    } else {
      entry.waiting.emplace_back(ref.epoch, std::move(done));
    }
  }
  Change(ref.name, entry);
  Flush();
}

void DurableState::Reported(const WorkerRef& ref) {
  const auto at = entries_.find(ref.name);
  if (at == entries_.end()) return;
  Entry& entry = at->second;
  const MonoTime now = loop_.Now();
  if (entry.epoch != ref.epoch || entry.lease == 0 || entry.renewing ||
      now < entry.renewed + options_.ttl / 3) {
    return;
  }
  entry.renewing = true;
  entry.renewed = now;
  etcd_.KeepAlive(entry.lease, [self = self_, name = ref.name,
                                lease = entry.lease](const absl::StatusOr<Duration>& ttl) {
    if (*self == nullptr) return;
    DurableState& state = **self;
    if (!ttl.ok()) ++state.errors_;
    const auto found = state.entries_.find(name);
    if (found == state.entries_.end()) return;
    found->second.renewing = false;
    if (!ttl.ok() || *ttl > Duration() || found->second.lease != lease) return;
    found->second.lease = 0;  // It has ended, and the key with it.
    state.Change(name, found->second);
    state.Flush();
  });
}

void DurableState::Ended(const WorkerRef& ref) {
  Entry& entry = entries_[ref.name];
  entry.ended = std::max(entry.ended, ref.epoch);
  if (entry.epoch <= ref.epoch) {
    entry.epoch = 0;
    entry.value.clear();
    if (entry.lease != 0) etcd_.Revoke(std::exchange(entry.lease, 0), nullptr);
    SetIdle(ref.name, entry, true);
  }
  Change(ref.name, entry);
  Flush();
}

void DurableState::SetIdle(const std::string& name, Entry& entry, bool idle) {
  if (entry.idle != 0) idle_.erase({entry.idle, name});
  entry.idle = idle ? idle_next_++ : 0;
  entry.forget = false;
  if (!idle) return;
  idle_.emplace(entry.idle, name);
  if (idle_.size() <= options_.ended_max) return;
  const std::string oldest = idle_.begin()->second;
  idle_.erase(idle_.begin());
  Entry& gone = entries_.at(oldest);
  gone.idle = 0;
  gone.forget = true;
  Change(oldest, gone);
}

void DurableState::Change(const std::string& name, Entry& entry) {
  ++entry.version;
  changed_.insert(name);
}

// First the leases of what is to be written, then all of it at once.
void DurableState::Flush() {
  if (flushing_ || changed_.empty() || leader_revision_ == 0) return;
  flushing_ = true;
  loop_.CancelTimer(timer_);
  struct Batch {
    std::vector<std::string> names;
    std::size_t grants = 1;  // That are awaited; and this function.
    absl::Status status;
  };
  const auto batch = std::make_shared<Batch>();  // Shared by the grants.
  for (const std::string& name : changed_) {
    if (batch->names.size() == kNamesMax) break;
    batch->names.push_back(name);
  }
  const auto granted = [self = self_, batch] {
    if (--batch->grants > 0) return;
    if (!batch->status.ok()) return (*self)->Fail(batch->status);
    (*self)->Write(batch->names);
  };
  for (const std::string& name : batch->names) {
    const Entry& entry = entries_.at(name);
    if (entry.epoch == 0 || entry.lease != 0) continue;
    ++batch->grants;
    etcd_.Grant(options_.ttl,
                [self = self_, batch, name, granted](const absl::StatusOr<EtcdGranted>& grant) {
                  if (*self == nullptr) return;
                  const auto at = (*self)->entries_.find(name);
                  if (!grant.ok()) {
                    batch->status = grant.status();
                  } else if (at != (*self)->entries_.end() && at->second.lease == 0) {
                    at->second.lease = grant->lease;
                  }
                  granted();
                });
  }
  granted();
}

void DurableState::Write(const std::vector<std::string>& names) {
  EtcdTxn txn = {.when = {{.key = options_.leader_key, .created = leader_revision_}}};
  Written written;
  for (const std::string& name : names) {
    const Entry& entry = entries_.at(name);
    written.emplace(name, std::pair(entry.version, entry.ended));
    const std::string epoch = options_.prefix + "epochs/" + name;
    const std::string worker = options_.prefix + "workers/" + name;
    if (entry.forget) {
      txn.then.push_back({.kind = EtcdOp::Kind::kDelete, .key = epoch});
    } else {
      txn.then.push_back(
          {.kind = EtcdOp::Kind::kPut, .key = epoch, .value = absl::StrCat(entry.ended)});
    }
    if (entry.epoch == 0) {
      txn.then.push_back({.kind = EtcdOp::Kind::kDelete, .key = worker});
    } else if (entry.lease != 0) {  // Else it began while the leases were asked for: next time.
      txn.then.push_back(
          {.kind = EtcdOp::Kind::kPut, .key = worker, .value = entry.value, .lease = entry.lease});
    } else {
      written[name].first = 0;
    }
  }
  etcd_.Txn(std::move(txn), [self = self_, written = std::move(written),
                             revision = leader_revision_](const absl::StatusOr<EtcdTxnResult>& r) {
    if (*self == nullptr) return;
    DurableState& state = **self;
    if (absl::IsNotFound(r.status())) return state.RenewLeases(written);
    if (!r.ok()) return state.Fail(r.status());
    if (r->held) return state.OnWritten(written);
    state.Fail(absl::AbortedError("another coordinator leads, or nobody"));
    if (state.leader_revision_ == revision) state.fenced_();
  });
}

// One of the leases has ended before it was used again: all are asked for anew.
void DurableState::RenewLeases(const Written& written) {
  for (const auto& [name, what] : written) entries_.at(name).lease = 0;
  if (++leases_renewed_ > kRenewalsMax) {
    return Fail(absl::UnavailableError("etcd does not know the leases that it gave"));
  }
  flushing_ = false;
  Flush();
}

void DurableState::OnWritten(const Written& written) {
  flushing_ = false;
  leases_renewed_ = 0;
  away_ = false;
  pause_ = options_.retry_min;
  std::vector<std::function<void()>> ready;
  for (const auto& [name, what] : written) {
    Entry& entry = entries_.at(name);
    entry.stored = what.second;
    std::erase_if(entry.waiting, [&](auto& waiting) {
      if (waiting.first > entry.stored + 1) return false;
      ready.push_back(std::move(waiting.second));
      return true;
    });
    if (entry.version != what.first) continue;
    changed_.erase(name);
    if (entry.forget) entries_.erase(name);
  }
  Flush();
  const std::shared_ptr<DurableState*> self = self_;
  for (const std::function<void()>& done : ready) {
    if (*self != nullptr) done();
  }
}

void DurableState::Fail(const absl::Status& why) {
  ++errors_;
  flushing_ = false;
  if (!std::exchange(away_, true)) {
    LOG_WARNING("state is not durable for now", {{"reason", why.ToString()}});
  }
  loop_.CancelTimer(timer_);
  timer_ = loop_.At(loop_.Now() + pause_, [this] { Flush(); });
  pause_ = std::min(pause_ * 2, options_.retry_max);
  std::vector<std::function<void()>> waiting;
  for (auto& [name, entry] : entries_) {
    for (auto& [epoch, done] : std::exchange(entry.waiting, {})) waiting.push_back(std::move(done));
  }
  late_ += waiting.size();
  const std::shared_ptr<DurableState*> self = self_;
  for (const std::function<void()>& done : waiting) {
    if (*self != nullptr) done();
  }
}

}  // namespace penstock::coordinator
