// SPDX-License-Identifier: Apache-2.0
// Copies of blocks that a worker's device encoded, or decodes.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/client/store_fixture.h"

namespace penstock::kvstore {
namespace {

// As they are sealed, and as they leave the pool; of what no device encodes the slab is taken.
TEST_F(StoreTest, WhatADeviceEncodedIsWhatTheHostWouldHaveMade) {
  for (const CodecId codec : {CodecId::kInt8, CodecId::kK8v4, CodecId::kKivi4, CodecId::kKivi2}) {
    for (const bool leaving : {false, true}) {
      std::vector<std::vector<Bytes>> slabs[2];
      for (const bool device : {false, true}) {
        SCOPED_TRACE(absl::StrCat(std::string(ToString(codec)), leaving, device));
        Start({}, {.forms = {{}, {codec, LossClass::kKl2}}, .device_encodes = device});
        const std::vector<Chain> chains = TestChains(1, 5);
        node_->tiers->Asked({});
        if (leaving) worker_->keeper().SetStore(std::nullopt);
        worker_->Compute(chains);
        if (leaving) {
          worker_->keeper().SetStore(TestWorker::AddressOf(kNode));
          loop_.RunUntilIdle();
          for (const Chain& chain : chains) {
            worker_->Drop({chain}, true);
            Settle();
          }
        }
        Settle();
        EXPECT_EQ(worker_->keeper().stats().taken, 10u);
        EXPECT_EQ(worker_->keeper().stats().encoded_by_device, device ? 5u : 0u);
        EXPECT_EQ(worker_->held(), 0);
        const auto fetched = worker_->Fetch(chains, kNode, seconds(10),
                                            {{.store = TestWorker::AddressOf(kNode),
                                              .first_block = 0,
                                              .end_block = 5,
                                              .loss = LossClass::kKl2}});
        loop_.Advance(seconds(11));
        ASSERT_EQ(fetched->outcome->end_block, 5);
        EXPECT_EQ(fetched->outcome->spans[0].codec, codec);
        slabs[device ? 1 : 0] = fetched->slabs;
      }
      EXPECT_EQ(slabs[0], slabs[1]);
    }
  }
}

// Lossless copies are made from what the device took apart, but for a block with more escapes than that
// has room for: of such its slab is asked for, too.
TEST_F(StoreTest, LosslessCopiesComeFromADeviceToo) {
  for (const CodecId codec : {CodecId::kPlanes, CodecId::kPlanesZstd}) {
    for (const bool leaving : {false, true}) {
      for (const bool wild : {false, true}) {
        SCOPED_TRACE(absl::StrCat(std::string(ToString(codec)), leaving, wild));
        Start({}, {.forms = {{codec, LossClass::kExact}}, .zeros = !wild, .device_encodes = true});
        const std::vector<Chain> chains = TestChains(1, 5);
        node_->tiers->Asked({});
        if (leaving) worker_->keeper().SetStore(std::nullopt);
        worker_->Compute(chains);
        if (leaving) {
          worker_->keeper().SetStore(TestWorker::AddressOf(kNode));
          loop_.RunUntilIdle();
          for (const Chain& chain : chains) {
            worker_->Drop({chain}, true);
            Settle();
          }
        }
        Settle();
        const Keeper::Stats stats = worker_->keeper().stats();
        EXPECT_EQ(stats.taken, 5u);
        EXPECT_EQ(stats.dropped, 0u);
        EXPECT_EQ(stats.encoded_by_device, wild ? 0u : 5u);
        EXPECT_EQ(worker_->held(), 0);
        EXPECT_TRUE(worker_->keeper().idle());
        const auto fetched = worker_->Fetch(chains, kNode);
        loop_.Advance(seconds(11));
        ASSERT_EQ(fetched->outcome->end_block, 5);
        EXPECT_EQ(fetched->outcome->spans[0].codec, codec);
        if (wild) worker_->Check(*fetched, chains);
      }
    }
  }
}

// What a device can decode stays encoded, forwards and backwards, and makes what the host would have.
TEST_F(StoreTest, BlocksStayEncodedForADevice) {
  for (const CodecId codec : AllCodecs()) {
    for (const bool backwards : {false, true}) {
      SCOPED_TRACE(absl::StrCat(std::string(ToString(codec)), backwards));
      const LossClass loss = IsLossless(codec) ? LossClass::kExact : LossClass::kKl2;
      std::vector<std::vector<Bytes>> slabs[2];
      for (const bool device : {false, true}) {
        Start({}, {.forms = {{codec, loss}}, .device_decodes = device});
        const std::vector<Chain> chains = TestChains(1, 5);
        node_->tiers->Asked({});
        worker_->Compute(chains);
        Settle();
        const auto fetched = worker_->Fetch(chains, kNode, seconds(10),
                                            {{.store = TestWorker::AddressOf(kNode),
                                              .first_block = 0,
                                              .end_block = 5,
                                              .loss = loss}},
                                            backwards);
        loop_.Advance(seconds(11));
        ASSERT_EQ(fetched->outcome->end_block, 5);
        const int want = device && EncodingOf(codec).has_value() ? 5 : 0;
        EXPECT_EQ(fetched->decoded, want);
        EXPECT_EQ(fetched->outcome->spans[0].blocks_encoded, want);
        slabs[device ? 1 : 0] = fetched->slabs;
      }
      EXPECT_EQ(slabs[0], slabs[1]);
    }
  }
}

}  // namespace
}  // namespace penstock::kvstore
