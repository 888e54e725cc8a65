// SPDX-License-Identifier: Apache-2.0
// Copies of hot blocks, from the plan that fetches them to the index that has two holders of them: a
// coordinator and two store nodes as they are, over gRPC and TCP.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "coordinator/coordinator_service_testing.h"
#include "device/cpu_device.h"
#include "kvstore/node/store_member.h"
#include "kvstore/node/store_node.h"
#include "kvstore/node/tier_set_testing.h"

namespace penstock {
namespace {

using coordinator::kPatience;
using kvstore::StoreMember;
using kvstore::StoreNode;
using kvstore::TierSet;

constexpr std::int32_t kBlocks = 6;

const std::vector<std::byte> kSecret(32, std::byte{7});

// A store node that takes part in a cluster.
class Node {
 public:
  Node(Device& device, const std::string& name, const std::string& coordinator) {
    StoreNode::Options options;
    options.endpoint.self = {.name = name, .epoch = 1};
    options.endpoint.kinds = {transfer::Kind::kTcp};
    options.host_bytes = std::uint64_t{16} << 20;
    options.server.secret = kSecret;
    node_ = StoreNode::Start(device, options).value();
    node_->loop().Run([&] {
      member_ = std::make_unique<StoreMember>(
          *node_,
          StoreMember::Options{.session = {.coordinators = {coordinator}},
                               .registration = {.name = name,
                                                .transfer_address = node_->transfer_address(),
                                                .transfer_epoch = 1},
                               .on_end = [](const absl::Status&) {}});
    });
  }
  ~Node() {
    node_->loop().Run([&] { member_.reset(); });
  }
  // What `look` says of its tiers.
  template <typename Look>
  auto See(Look look) {
    decltype(look(node_->tiers())) seen{};
    node_->loop().Run([&] { seen = look(node_->tiers()); });
    return seen;
  }
  StoreNode& node() { return *node_; }

 private:
  std::unique_ptr<StoreNode> node_;
  std::unique_ptr<StoreMember> member_;
};

class ReplicationServiceTest : public coordinator::ClusterServiceTest {
 protected:
  // Until the coordinator knows of so many copies there.
  bool AwaitCopies(const std::string& store, std::uint64_t copies) {
    for (const MonoTime end = SteadyClock().Now() + kPatience; SteadyClock().Now() < end;) {
      const v1::StatusResponse all = Status();
      for (const auto& status : all.stores()) {
        if (status.name() == store && status.copies_known() == copies) return true;
      }
    }
    return false;
  }
};

TEST_F(ReplicationServiceTest, WhatIsFetchedOftenGetsAnotherHolder) {
  options_.coordinator.replication = {.hot_share = 0, .cold_share = 1, .fetches_min = 2};
  Start();
  const std::unique_ptr<CpuDevice> device = CpuDevice::Make({.threads = 1}).value();
  Node a(*device, "a", server_->address());
  Node b(*device, "b", server_->address());
  const std::vector<Chain> chains = kvstore::TestChains(1, kBlocks);
  std::string names;
  for (std::int32_t i = 0; i < kBlocks; ++i) {
    const Chain& chain = chains[static_cast<std::size_t>(i)];
    names.append(reinterpret_cast<const char*>(chain.bytes.data()), chain.bytes.size());
    const absl::Status put =
        a.See([&](TierSet& tiers) { return kvstore::PutBlock(tiers, chains, i, 0, kSecret); });
    ASSERT_TRUE(put.ok()) << put;
  }
  ASSERT_TRUE(AwaitCopies("a", kBlocks));
  ASSERT_TRUE(AwaitCopies("b", 0));

  v1::WorkerMessage registration = coordinator::RegisterOf("d", 1);
  auto* const group = registration.mutable_register_()->add_groups();
  const Namespace space = kvstore::TestCopyKey(chains[0]).space;
  group->set_copy_space(std::string(space.bytes.begin(), space.bytes.end()));
  group->set_block_bytes(8192);
  const auto worker = Joined(registration);
  const auto gateway = Attending("g");
  for (const char* id : {"first", "second"}) {
    EXPECT_EQ(b.See([](TierSet& tiers) { return tiers.copies(); }), 0u);
    v1::GatewayMessage route = coordinator::GatewayPeer::RouteOf(id);
    route.mutable_route()->set_chains(names);
    route.mutable_route()->set_prompt_tokens(kBlocks * 16 + 1);
    route.mutable_route()->set_tenant(5);
    ASSERT_EQ(gateway->Route(route), absl::OkStatus());
    const v1::WorkerCommand reserve =
        worker->Await([](const v1::WorkerCommand& c) { return c.has_reserve(); });
    ASSERT_EQ(reserve.reserve().sources_size(), 1);
    EXPECT_EQ(reserve.reserve().sources(0).store(), "a");
  }
  ASSERT_TRUE(AwaitCopies("b", kBlocks));
  const auto listed = [](TierSet& tiers) { return tiers.List(); };
  const std::vector<TierSet::Listed> ours = b.See(listed);
  const std::vector<TierSet::Listed> theirs = a.See(listed);
  ASSERT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    EXPECT_EQ(ours[i].copy.key, theirs[i].copy.key);
    EXPECT_EQ(ours[i].copy.bytes, theirs[i].copy.bytes);
    EXPECT_EQ(ours[i].copy.parent, theirs[i].copy.parent);
    EXPECT_EQ(ours[i].copy.tenant, 5u);
  }
  std::uint64_t moved = 0;
  MetricsWriter writer;
  b.node().loop().Run([&] {
    moved = b.node().replicator().stats().copied;
    b.node().turns().WriteMetrics(writer);
  });
  EXPECT_EQ(moved, static_cast<std::uint64_t>(kBlocks));
  bool counted = false;
  for (const MetricFamily& family : writer.Take()) {
    for (const MetricSample& sample : family.samples) {
      const MetricLabels want = {{"class", "replication"}, {"link", "from 127.0.0.1"}};
      counted |= family.name == "penstock_link_turns_total" && sample.labels == want &&
                 sample.value == kBlocks;
    }
  }
  EXPECT_TRUE(counted) << "each took its turn on the link from the other node's host";
}

}  // namespace
}  // namespace penstock
