// SPDX-License-Identifier: Apache-2.0
// A store of a few keys that outlives processes (etcd), as its users see it: transactions and
// leases, in plain structs. etcd_client.h talks to a real one; tests have their own.
//
// On one loop's thread: calls return at once, `done` is called on the loop, once, never from inside
// a call, and not after the store's end. Every call ends within a bounded time: UNAVAILABLE or
// DEADLINE_EXCEEDED when no one answers; the transaction may have been done nevertheless.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"

namespace penstock::rpc {

using EtcdLease = std::int64_t;  // 0: none.

struct EtcdKey {
  std::string key = {};
  std::string value = {};
  std::int64_t created = 0;   // Revision of the store; greater in every life of that key.
  std::int64_t modified = 0;  // Likewise, of its last write.
  EtcdLease lease = 0;
};

struct EtcdOp {
  enum class Kind : std::uint8_t { kGet, kGetPrefix, kPut, kDelete };
  Kind kind = Kind::kGet;
  std::string key = {};
  std::string value = {};  // Of kPut, as below.
  EtcdLease lease = 0;
};

struct EtcdTxn {
  struct Compare {
    std::string key = {};
    std::int64_t created = 0;  // 0: there is no such key.
  };
  std::vector<Compare> when = {};  // All must hold: then `then` is done, else `otherwise`.
  std::vector<EtcdOp> then = {};   // Each key at most once.
  std::vector<EtcdOp> otherwise = {};
};
struct EtcdTxnResult {
  bool held = false;                // What `when` asks.
  std::int64_t revision = 0;        // Of the store; what the transaction wrote has this one.
  std::vector<EtcdKey> found = {};  // By all gets, in order.
};

struct EtcdGranted {
  EtcdLease lease = 0;
  Duration ttl = {};  // At least what was asked for.
};

class Etcd {
 public:
  template <typename T>
  using Done = std::function<void(absl::StatusOr<T> result)>;

  virtual ~Etcd() = default;
  virtual void Txn(EtcdTxn txn, Done<EtcdTxnResult> done) = 0;
  virtual void Grant(Duration ttl, Done<EtcdGranted> done) = 0;
  // From when it was asked; zero: that lease has ended, and its keys with it.
  virtual void KeepAlive(EtcdLease lease, Done<Duration> done) = 0;
  // Its keys end with it. `done` may be empty.
  virtual void Revoke(EtcdLease lease, std::function<void()> done) = 0;
};

}  // namespace penstock::rpc
