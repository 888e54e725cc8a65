// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_node.h"

#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "kvstore/disk/uring_disk.h"

namespace penstock::kvstore {
namespace {

constexpr Duration kExpireEvery = std::chrono::milliseconds(250);
// Of a disk, which is the faster the more it has to do at once, and of a server: about as many calls as
// the tier has on their way (RemoteTier::Options). As many wait as these would take.
constexpr transfer::LinkQueue::Options kDiskLink = {
    .bytes_max = std::uint64_t{64} << 20, .moves_max = 256, .waiting_max = 256};
constexpr transfer::LinkQueue::Options kRemoteLink = {
    .bytes_max = std::uint64_t{32} << 20, .moves_max = 64, .waiting_max = 1024};

}  // namespace

transfer::Endpoint::Identity StoreIdentity() { return {{"protocol", "penstock.store.1"}}; }

absl::StatusOr<std::unique_ptr<StoreNode>> StoreNode::Start(Device& device,
                                                            const Options& options) {
  std::unique_ptr<StoreNode> node(new StoreNode(options));
  ASSIGN_OR_RETURN(node->loop_, EpollLoop::Make("kvstore"));
  ASSIGN_OR_RETURN(node->memory_, device.Allocate(options.host_bytes, Sharing::kPeers));
  absl::Status status;
  node->loop_->Run([&] { status = node->Open(); });
  RETURN_IF_ERROR(status);
  return node;
}

absl::Status StoreNode::Open() {
  turns_ = std::make_unique<transfer::LinkTurns>(*loop_, options_.tiers.spans);
  turns_->Set("disk", kDiskLink);
  turns_->Set("remote", kRemoteLink);
  ASSIGN_OR_RETURN(host_, HostTier::Make({memory_->data(), memory_->size_bytes()}, options_.host));
  if (!options_.disk_directory.empty()) {
    ASSIGN_OR_RETURN(disk_io_, OpenUringDisk(*loop_, {.directory = options_.disk_directory}));
    ASSIGN_OR_RETURN(disk_,
                     DiskTier::Open(*loop_, *disk_io_,
                                    {.bytes_max = options_.disk_bytes, .turns = turns_.get()}));
    const DiskTier::Stats stats = disk_->stats();
    LOG_INFO("disk tier open", {{"directory", options_.disk_directory},
                                {"copies", stats.blocks},
                                {"bytes", stats.bytes_live},
                                {"damaged", stats.damaged}});
  }
  if (!options_.remote.address.empty()) {
    ASSIGN_OR_RETURN(std::unique_ptr<RedisLink> link, OpenRedisLink(*loop_, options_.remote));
    remote_ = std::make_unique<RemoteTier>(*loop_, std::move(link), RemoteTier::Options());
  }
  TierSet::Options tiers = options_.tiers;
  tiers.secret = options_.server.secret;
  ASSIGN_OR_RETURN(tiers_, TierSet::Make({.loop = loop_.get(),
                                          .host = host_.get(),
                                          .disk = disk_.get(),
                                          .remote = remote_.get(),
                                          .turns = turns_.get()},
                                         tiers, [this](const CopyEvent& event) {
                                           if (on_event_ != nullptr) on_event_(event);
                                         }));
  prefetcher_ = std::make_unique<Prefetcher>(*loop_, *tiers_, Prefetcher::Options());
  transfer::Endpoint::Options endpoint = options_.endpoint;
  endpoint.identity = StoreIdentity();
  ASSIGN_OR_RETURN(endpoint_, transfer::Endpoint::Make(
                                  *loop_, std::move(endpoint),
                                  [this](std::unique_ptr<transfer::Channel> channel) {
                                    server_->AddPeer(std::move(channel));
                                  },
                                  [](const absl::Status& why) {
                                    LOG_WARNING("peer refused", {{"reason", why.ToString()}});
                                  }));
  transfer_address_ = endpoint_->address();
  server_ = std::make_unique<StoreServer>(*loop_, *tiers_, *turns_, endpoint_->Register(*memory_),
                                          options_.server);
  links_ = std::make_unique<StoreLinks>(
      [this](const transfer::Peer& peer, const std::string& address, StoreLinks::Connected done) {
        endpoint_->Connect(peer, address, std::move(done));
      });
  replicator_ = std::make_unique<Replicator>(*loop_, *tiers_, *links_, *turns_,
                                             Replicator::Options{.secret = options_.server.secret});
  Expire();
  return absl::OkStatus();
}

void StoreNode::Expire() {
  host_->Expire(loop_->Now());
  expiry_ = loop_->At(loop_->Now() + kExpireEvery, [this] { Expire(); });
}

StoreNode::~StoreNode() {
  if (loop_ == nullptr) return;
  loop_->Run([this] {
    loop_->CancelTimer(expiry_);
    server_.reset();
    replicator_.reset();
    links_.reset();
    endpoint_.reset();
    prefetcher_.reset();
    tiers_.reset();
    // What the kernel still reads or writes ends before the memory goes.
    remote_.reset();
    disk_.reset();
    disk_io_.reset();
    host_.reset();
    turns_.reset();
  });
}

}  // namespace penstock::kvstore
