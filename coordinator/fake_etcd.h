// SPDX-License-Identifier: Apache-2.0
// A store in memory, for tests, and clients of it with every trouble that a line to it may have.
// Time is that of whoever asks last.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/event_loop.h"
#include "rpc/etcd.h"

namespace penstock::coordinator {

class FakeStore {
 public:
  std::map<std::string, rpc::EtcdKey> keys;
  std::int64_t revision = 1;
  MonoTime now{};

  // What has expired by then is gone.
  void AdvanceTo(MonoTime when) {
    now = std::max(now, when);
    std::erase_if(leases_, [&](const auto& lease) {
      if (lease.second.first > now) return false;
      EraseKeysOf(lease.first);
      return true;
    });
  }
  // As etcd does when it was restarted: all leases run anew.
  void Restart() {
    for (auto& [id, lease] : leases_) lease.first = now + lease.second;
  }
  void LoseEverything() {
    keys.clear();
    leases_.clear();
    revision = 1;
  }
  std::string ValueOf(const std::string& key) const {
    const auto at = keys.find(key);
    return at == keys.end() ? "(none)" : at->second.value;
  }
  void Put(const std::string& key, const std::string& value, rpc::EtcdLease lease = 0) {
    ++revision;
    rpc::EtcdKey& at = keys[key];
    at = {.key = key,
          .value = value,
          .created = at.created == 0 ? revision : at.created,
          .modified = revision,
          .lease = lease};
  }
  std::size_t leases() const { return leases_.size(); }

  absl::StatusOr<rpc::EtcdTxnResult> Do(const rpc::EtcdTxn& txn) {
    rpc::EtcdTxnResult result;
    result.held = std::ranges::all_of(txn.when, [&](const rpc::EtcdTxn::Compare& one) {
      const auto at = keys.find(one.key);
      return (at == keys.end() ? 0 : at->second.created) == one.created;
    });
    const std::vector<rpc::EtcdOp>& ops = result.held ? txn.then : txn.otherwise;
    for (const rpc::EtcdOp& op : ops) {
      if (op.kind == rpc::EtcdOp::Kind::kPut && op.lease != 0 && !leases_.contains(op.lease)) {
        return absl::NotFoundError("requested lease not found");
      }
    }
    const std::int64_t at = revision + 1;
    bool wrote = false;
    for (const rpc::EtcdOp& op : ops) wrote = Apply(op, at, result) || wrote;
    if (wrote) revision = at;
    result.revision = revision;
    return result;
  }
  rpc::EtcdGranted Grant(Duration ttl) {
    leases_[++lease_] = {now + ttl, ttl};
    return {.lease = lease_, .ttl = ttl};
  }
  Duration KeepAlive(rpc::EtcdLease lease) {
    const auto at = leases_.find(lease);
    if (at == leases_.end()) return Duration();
    at->second.first = now + at->second.second;
    return at->second.second;
  }
  void Revoke(rpc::EtcdLease lease) {
    if (leases_.erase(lease) > 0) EraseKeysOf(lease);
  }

 private:
  bool Apply(const rpc::EtcdOp& op, std::int64_t at, rpc::EtcdTxnResult& result) {
    switch (op.kind) {
      case rpc::EtcdOp::Kind::kGet:
      case rpc::EtcdOp::Kind::kGetPrefix:
        for (const auto& [name, key] : keys) {
          const bool prefix = op.kind == rpc::EtcdOp::Kind::kGetPrefix;
          if (prefix ? name.starts_with(op.key) : name == op.key) result.found.push_back(key);
        }
        return false;
      case rpc::EtcdOp::Kind::kPut: {
        rpc::EtcdKey& key = keys[op.key];
        const std::int64_t created = key.created == 0 ? at : key.created;
        key = {op.key, op.value, created, at, op.lease};
        return true;
      }
      case rpc::EtcdOp::Kind::kDelete:
        return keys.erase(op.key) > 0;
    }
    return false;
  }
  void EraseKeysOf(rpc::EtcdLease lease) {
    if (std::erase_if(keys, [&](const auto& key) { return key.second.lease == lease; }) > 0) {
      ++revision;
    }
  }

  std::map<rpc::EtcdLease, std::pair<MonoTime, Duration>> leases_;  // End, length.
  rpc::EtcdLease lease_ = 0;
};

class FakeEtcd final : public rpc::Etcd {
 public:
  static constexpr Duration kWithin = std::chrono::seconds(1);
  static constexpr Duration kLatency = std::chrono::milliseconds(2);

  bool away = false;          // Nothing arrives.
  bool answers_lost = false;  // All is done, and nobody hears of it.
  int calls = 0;              // That have arrived.

  FakeEtcd(Loop& loop, FakeStore& store) : loop_(loop), store_(store) {}
  ~FakeEtcd() override { *alive_ = false; }

  void Txn(rpc::EtcdTxn txn, Done<rpc::EtcdTxnResult> done) override {
    Call<rpc::EtcdTxnResult>(std::move(done),
                             [txn = std::move(txn)](FakeStore& store) { return store.Do(txn); });
  }
  void Grant(Duration ttl, Done<rpc::EtcdGranted> done) override {
    Call<rpc::EtcdGranted>(std::move(done), [ttl](FakeStore& store) { return store.Grant(ttl); });
  }
  void KeepAlive(rpc::EtcdLease lease, Done<Duration> done) override {
    Call<Duration>(std::move(done), [lease](FakeStore& store) { return store.KeepAlive(lease); });
  }
  void Revoke(rpc::EtcdLease lease, std::function<void()> done) override {
    Call<bool>(
        [done = std::move(done)](absl::StatusOr<bool>) {
          if (done != nullptr) done();
        },
        [lease](FakeStore& store) {
          store.Revoke(lease);
          return true;
        });
  }

 private:
  template <typename T, typename What>
  void Call(Done<T> done, What what) {
    After(kLatency,
          [this, done = std::move(done), what = std::move(what), until = loop_.Now() + kWithin] {
            absl::StatusOr<T> result = absl::DeadlineExceededError("nobody answers");
            if (!away) {
              ++calls;
              store_.AdvanceTo(loop_.Now());
              absl::StatusOr<T> answer = what(store_);
              if (!answers_lost) result = std::move(answer);
            }
            const Duration wait = result.ok() ? kLatency : until - loop_.Now();
            After(wait, [done, result = std::move(result)] { done(result); });
          });
  }
  void After(Duration wait, std::function<void()> task) {
    loop_.At(loop_.Now() + wait, [alive = alive_, task = std::move(task)] {
      if (*alive) task();
    });
  }

  Loop& loop_;
  FakeStore& store_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace penstock::coordinator
