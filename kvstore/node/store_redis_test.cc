// SPDX-License-Identifier: Apache-2.0
// Two nodes with a real redis-server between them.
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <string>

#include "base/log.h"
#include "device/cpu_device.h"
#include "kvstore/node/store_node.h"
#include "kvstore/node/tier_set_testing.h"
#include "kvstore/remote/redis_testing.h"

namespace penstock::kvstore {
namespace {

using std::chrono::seconds;

constexpr std::int32_t kCopies = 40;

class StoreRedisTest : public testing::Test {
 protected:
  StoreRedisTest() { SetLogLevel(LogLevel::kOff); }
  ~StoreRedisTest() override { SetLogLevel(LogLevel::kWarning); }
  void SetUp() override {
    if (!RealRedis::Exists()) GTEST_SKIP() << "no redis-server (./dev installs it)";
    redis_ = std::make_unique<RealRedis>(folder_.path());
    ASSERT_EQ(redis_->trouble(), "");
  }
  std::unique_ptr<StoreNode> Start(const std::string& name, std::byte secret) {
    StoreNode::Options options;
    options.endpoint.self = {.name = name, .epoch = 1};
    options.endpoint.kinds = {transfer::Kind::kTcp};
    options.host_bytes = std::uint64_t{4} << 20;
    options.remote.address = redis_->address();
    options.server.secret.assign(32, secret);
    absl::StatusOr<std::unique_ptr<StoreNode>> node = StoreNode::Start(*device_, options);
    EXPECT_TRUE(node.ok()) << node.status();
    return *std::move(node);
  }
  void Put(StoreNode& node, std::byte secret) {
    node.loop().Run([&] {
      for (std::int32_t i = 0; i < kCopies; ++i) {
        ASSERT_TRUE(PutBlock(node.tiers(), chains_, i, 0, std::vector<std::byte>(32, secret)).ok());
      }
      node.tiers().FlushHost();
    });
    // Each write ends by a deadline of its own.
    const MonoTime end = node.loop().Now() + seconds(30);
    std::size_t leaving = 1;
    while (leaving > 0 && node.loop().Now() < end) {
      node.loop().Run([&] { leaving = node.tiers().leaving(); });
    }
    EXPECT_EQ(leaving, 0u);
  }
  // OK only with the frame that was put.
  absl::Status Get(StoreNode& node, std::int32_t index, std::byte secret) {
    std::promise<absl::Status> told;
    const Chain& chain = chains_[static_cast<std::size_t>(index)];
    node.loop().Run([&] {
      node.tiers().Get(
          TestCopyKey(chain), node.loop().Now() + seconds(20),
          [&](const absl::StatusOr<TierSet::Got>& got) {
            if (!got.ok()) {
              return told.set_value(absl::Status(got.status().code(), got.status().message()));
            }
            const auto bytes = node.tiers().host().Bytes(got->found.place, got->found.copy.bytes);
            const Bytes want = TestFrame(chain, index, std::vector<std::byte>(32, secret));
            told.set_value(std::ranges::equal(bytes, want) && got->from == Tier::kRemote
                               ? absl::OkStatus()
                               : absl::InternalError("other bytes, or from elsewhere"));
          });
    });
    return told.get_future().get();
  }

  const std::vector<Chain> chains_ = TestChains(1, kCopies);
  const std::unique_ptr<CpuDevice> device_ = CpuDevice::Make({.threads = 1}).value();
  TestFolder folder_;
  std::unique_ptr<RealRedis> redis_;
};

TEST_F(StoreRedisTest, OneNodesBlocksAreTheOthers) {
  const auto one = Start("one", std::byte{1});
  Put(*one, std::byte{1});
  const auto two = Start("two", std::byte{1});
  for (std::int32_t i = 0; i < kCopies; ++i) {
    EXPECT_EQ(Get(*two, i, std::byte{1}), absl::OkStatus()) << i;
  }
  // A node of another cluster believes none of them.
  const auto stranger = Start("stranger", std::byte{2});
  for (std::int32_t i = 0; i < kCopies; ++i) {
    EXPECT_EQ(Get(*stranger, i, std::byte{2}).code(), absl::StatusCode::kDataLoss) << i;
  }
  stranger->loop().Run([&] { EXPECT_EQ(stranger->tiers().copies(), 0u); });
}

TEST_F(StoreRedisTest, AServerThatStopsIsAMiss) {
  const auto node = Start("node", std::byte{1});
  Put(*node, std::byte{1});
  redis_.reset();
  const absl::Status status = Get(*node, 0, std::byte{1});
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsNotFound(status)) << status;
}

}  // namespace
}  // namespace penstock::kvstore
