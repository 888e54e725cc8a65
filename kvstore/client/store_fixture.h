// SPDX-License-Identifier: Apache-2.0
// For tests: a store node and a worker together, on one virtual clock; nothing of either is left over
// at the end.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "kvstore/client/store_testing.h"

namespace penstock::kvstore {

using std::chrono::milliseconds;
using std::chrono::seconds;

inline constexpr char kNode[] = "store-1";

inline std::vector<std::byte> SecretOf(int number) {
  return std::vector<std::byte>(32, static_cast<std::byte>(number));
}

class StoreTest : public testing::Test {
 protected:
  void Start(const TestNode::Options& node, const TestWorker::Options& worker = {}) {
    node_ = std::make_unique<TestNode>(loop_, 1, node);
    worker_ = std::make_unique<TestWorker>(loop_, worker);
    worker_->SetNode(kNode, node_.get());
    worker_->keeper().SetStore(TestWorker::AddressOf(kNode));
  }
  // Nobody has anything left to do.
  void Settle() {
    loop_.Advance(seconds(1));
    EXPECT_TRUE(worker_->keeper().idle());
    EXPECT_EQ(worker_->held(), 0);
  }
  std::int32_t Fetch(const std::vector<Chain>& chains, Duration within = seconds(10)) {
    const auto fetched = worker_->Fetch(chains, kNode, within);
    loop_.Advance(within + seconds(1));
    worker_->Check(*fetched, chains);
    last_ = *fetched->outcome;
    return last_.end_block;
  }
  void TearDown() override {
    if (node_ == nullptr) return;
    last_ = {};  // With what it has mapped.
    loop_.Advance(seconds(60));
    node_->host->Expire(loop_.Now());
    EXPECT_EQ(node_->server->finds(), 0u);
    EXPECT_EQ(node_->server->offers(), 0u);
    EXPECT_EQ(node_->server->kept(), 0u);
    EXPECT_EQ(worker_->fetcher().mapped().stats().copies, 0u);
    EXPECT_EQ(node_->host->stats().leases, 0u);
    EXPECT_EQ(node_->host->stats().leaving, 0u);
    EXPECT_EQ(worker_->fetcher().fetches(), 0u);
    worker_.reset();
    node_.reset();
  }

  VirtualLoop loop_;
  std::unique_ptr<TestNode> node_;
  std::unique_ptr<TestWorker> worker_;
  Fetcher::Outcome last_;
};

}  // namespace penstock::kvstore
