// SPDX-License-Identifier: Apache-2.0
// A store node, put together: a loop, an endpoint that workers connect to, host memory that they map,
// the disk, and the server between them; and what it fetches from other nodes. The RPC server is beside it (store_service.h), its part in a
// cluster too (store_member.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/copy_event.h"
#include "base/epoll_loop.h"
#include "device/device.h"
#include "kvstore/disk/disk_io.h"
#include "kvstore/disk/disk_tier.h"
#include "kvstore/host/host_tier.h"
#include "kvstore/node/prefetcher.h"
#include "kvstore/node/replicator.h"
#include "kvstore/node/store_links.h"
#include "kvstore/node/store_server.h"
#include "kvstore/node/tier_set.h"
#include "kvstore/remote/redis_link.h"
#include "kvstore/remote/remote_tier.h"
#include "transfer/endpoint.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

// What two sides of a store's channel must have in common: its protocol alone. Each frame says what
// it is.
transfer::Endpoint::Identity StoreIdentity();

class StoreNode {
 public:
  struct Options {
    transfer::Endpoint::Options endpoint;  // `self` names the node; the identity is set here.
    std::uint64_t host_bytes = std::uint64_t{1} << 30;
    HostTier::Options host;
    std::string disk_directory;  // Empty: no disk tier.
    std::uint64_t disk_bytes = std::uint64_t{8} << 30;
    RedisLinkOptions remote;  // Without an address: no remote tier.
    TierSet::Options tiers;   // The secret is the server's.
    StoreServer::Options server;
  };

  // `device` has the host memory; it outlives the node. What OpenUringDisk and DiskTier::Open say of
  // the directory, and OpenRedisLink of the address; INVALID_ARGUMENT for a remote tier without a
  // secret; RESOURCE_EXHAUSTED with both numbers when there is less memory; UNAVAILABLE when an
  // address is taken.
  static absl::StatusOr<std::unique_ptr<StoreNode>> Start(Device& device, const Options& options);
  ~StoreNode();

  // Hears where copies lie, as it changes; on the loop. Null: nobody.
  void set_on_event(TierSet::OnEvent on_event) { on_event_ = std::move(on_event); }

  EpollLoop& loop() { return *loop_; }
  TierSet& tiers() { return *tiers_; }  // On the loop, as the rest.
  StoreServer& server() { return *server_; }
  Prefetcher& prefetcher() { return *prefetcher_; }
  Replicator& replicator() { return *replicator_; }
  const transfer::LinkTurns& turns() const { return *turns_; }
  const Options& options() const { return options_; }
  const std::string& transfer_address() const { return transfer_address_; }

 private:
  explicit StoreNode(const Options& options) : options_(options) {}
  absl::Status Open();
  void Expire();

  const Options options_;
  std::unique_ptr<EpollLoop> loop_;
  std::unique_ptr<DeviceMemory> memory_;
  // On the loop, from here on.
  std::unique_ptr<transfer::LinkTurns> turns_;
  std::unique_ptr<HostTier> host_;
  std::unique_ptr<DiskIo> disk_io_;
  std::unique_ptr<DiskTier> disk_;
  std::unique_ptr<RemoteTier> remote_;
  std::unique_ptr<TierSet> tiers_;
  std::unique_ptr<Prefetcher> prefetcher_;
  std::unique_ptr<transfer::Endpoint> endpoint_;
  std::unique_ptr<StoreLinks> links_;  // To other nodes.
  std::unique_ptr<Replicator> replicator_;
  std::unique_ptr<StoreServer> server_;
  TierSet::OnEvent on_event_;
  Loop::TimerId expiry_{};
  std::string transfer_address_;
};

}  // namespace penstock::kvstore
