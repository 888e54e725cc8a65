// SPDX-License-Identifier: Apache-2.0
// A store node's part in a cluster: tells the coordinator which copies lie in which tier, and how full
// the tiers are. Events of `every` go together.
//
// On the node's loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/copy_event.h"
#include "base/metrics.h"
#include "base/time.h"
#include "kvstore/node/store_node.h"
#include "rpc/session_client.h"

namespace penstock::kvstore {

class StoreMember {
 public:
  struct Options {
    rpc::SessionClient::Options session;
    // Who this is; the role is set here.
    rpc::WorkerRegistration registration;
    // Once: the process should end. Not OK: the coordinator will not have this node.
    std::function<void(const absl::Status& why)> on_end;
    Duration every = std::chrono::milliseconds(10);
  };

  // `node` outlives the member.
  StoreMember(StoreNode& node, Options options);
  ~StoreMember();
  // Says good-bye; then on_end.
  void Leave() { session_->Leave(); }
  void WriteMetrics(MetricsWriter& writer) const;

 private:
  void OnEvent(const CopyEvent& event);
  void Flush();
  void Snapshot();
  rpc::WorkerLoad Load();

  StoreNode& node_;
  const Duration every_;
  std::vector<CopyEvent> events_;
  Loop::TimerId timer_{};
  std::unique_ptr<rpc::SessionClient> session_;
};

}  // namespace penstock::kvstore
