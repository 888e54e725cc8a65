// SPDX-License-Identifier: Apache-2.0
// What a fetcher owes to who asks, whatever comes; what it brings is store_test.cc's.
#include "kvstore/client/fetcher.h"

#include <gtest/gtest.h>

#include "kvstore/client/store_fixture.h"

namespace penstock::kvstore {
namespace {

class FetcherTest : public StoreTest {};

TEST_F(FetcherTest, AFetcherMayEndAsItTells) {
  Start({});
  const std::vector<Chain> chains = TestChains(1, 1);
  worker_->Compute(chains);
  Settle();
  const PageLayout layout = worker_->layout();
  Bytes slab(layout.slab_bytes());
  std::int32_t ended = 0;
  worker_->fetcher().Fetch(
      {.spaces = kTestSpaces,
       .chains = chains,
       .groups = {{.layout = layout, .slabs = {slab.data()}}},
       .sources = {{.store = TestWorker::AddressOf(kNode), .end_block = 1, .within = seconds(10)}}},
      [&](const Fetcher::Outcome& outcome) {
        ended = outcome.end_block;
        worker_.reset();
      });
  loop_.Advance(seconds(1));
  EXPECT_EQ(ended, 1);
  EXPECT_EQ(worker_, nullptr);
  EXPECT_EQ(node_->server->peers(), 0u);
  EXPECT_EQ(node_->host->stats().leases, 0u);
  node_.reset();
}

}  // namespace
}  // namespace penstock::kvstore
