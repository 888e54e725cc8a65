// SPDX-License-Identifier: Apache-2.0
// etcd 3.4 and later over its gRPC API. Unencrypted and without users, as all of a cluster is.
//
// Of several endpoints one is asked until a call to it fails, then the next in turn. Nothing is
// asked twice: whoever wants something tries again. Threads are gRPC's; state is the loop's.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "base/time.h"
#include "rpc/etcd.h"

namespace penstock::rpc {

class EtcdClient final : public Etcd {
 public:
  struct Options {
    std::vector<std::string> endpoints;  // "host:port", at least one (CHECKed).
    Duration call_within = std::chrono::seconds(1);
    std::size_t calls_max = 1024;  // At a time; more are RESOURCE_EXHAUSTED.
  };

  // `loop` outlives it. Made and destroyed on the loop's thread, where the end waits until gRPC is
  // done with what was asked.
  EtcdClient(Loop& loop, Options options);
  ~EtcdClient() override;

  void Txn(EtcdTxn txn, Done<EtcdTxnResult> done) override;
  void Grant(Duration ttl, Done<EtcdGranted> done) override;
  void KeepAlive(EtcdLease lease, Done<Duration> done) override;
  void Revoke(EtcdLease lease, std::function<void()> done) override;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// What a member says of itself: its version, "3.4.23". Waits for it. UNAVAILABLE, DEADLINE_EXCEEDED:
// nobody answers there; FAILED_PRECONDITION: it has no leader, so that it cannot be written.
absl::StatusOr<std::string> EtcdVersion(const std::string& endpoint, Duration within);

}  // namespace penstock::rpc
