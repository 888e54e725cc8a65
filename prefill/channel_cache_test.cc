// SPDX-License-Identifier: Apache-2.0
// Channels between two GPUs that break, and those that follow them.
#include "prefill/channel_cache.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <vector>

#include "transfer/endpoint_testing.h"
#include "transfer/nccl_pair_testing.h"

namespace penstock::prefill {
namespace {

using transfer::Channel;
using transfer::Kind;
using transfer::Peer;

class ChannelCacheTest : public testing::Test {
 protected:
  ChannelCacheTest() {
    world_.On([&] {
      endpoint_ = Make("a", 0, [](auto) {});
      far_ = Make("b", 1, [this](std::unique_ptr<Channel> channel) {
        channel->Start({.on_message = [](auto) {}, .on_closed = [](auto&) {}});
        accepted_.push_back(std::move(channel));
      });
      sender_ = std::make_unique<transfer::HandoffSender>(
          world_.loop(), std::vector<transfer::PoolGroup>(), std::vector<const std::byte*>(),
          [this](const Channel& channel, const absl::Status& why) {
            cache_->Forget(channel, why);
          });
      cache_ = std::make_unique<ChannelCache>(world_.loop(), *endpoint_, *sender_,
                                              std::chrono::milliseconds(1));
    });
  }
  ~ChannelCacheTest() override {
    world_.On([&] {
      accepted_.clear();
      sender_.reset();
      endpoint_.reset();
      far_.reset();
      cache_.reset();
    });
  }
  std::unique_ptr<transfer::Endpoint> Make(const char* name, std::size_t gpu,
                                           transfer::Endpoint::Accept accept) {
    transfer::Endpoint::Options options = transfer::PeerOptions(name, folder_.path(), "nccl,tcp");
    options.nccl = {world_.gpu(gpu).comms.get()};
    return transfer::Endpoint::Make(world_.real_loop(), std::move(options), std::move(accept),
                                    [](const absl::Status&) {})
        .value();
  }
  Kind Get() {
    std::optional<Kind> kind;
    world_.On([&] {
      cache_->Get(kPeer, far_->address(), [&](auto channel) { kind = channel.value()->kind(); });
    });
    EXPECT_TRUE(world_.Until([&] { return kind.has_value(); }));
    return *kind;
  }
  // The peer's end of all channels of that kind goes.
  void Break(Kind kind) {
    world_.On([&] {
      EXPECT_GT(std::erase_if(accepted_, [kind](auto& c) { return c->kind() == kind; }), 0u);
    });
  }
  std::optional<Kind> Known() {
    const std::optional<ChannelCache::Known> known = cache_->Find(kPeer);
    return known.has_value() ? std::optional(known->kind) : std::nullopt;
  }

  const Peer kPeer = {"b", 1};
  transfer::NcclWorld world_;
  transfer::TemporaryFolder folder_;
  std::unique_ptr<transfer::Endpoint> endpoint_, far_;
  std::vector<std::unique_ptr<Channel>> accepted_;
  std::unique_ptr<transfer::HandoffSender> sender_;
  std::unique_ptr<ChannelCache> cache_;
};

TEST_F(ChannelCacheTest, NcclThatBrokeIsTriedAgainBesideWhatFollowedIt) {
  EXPECT_EQ(Get(), Kind::kNccl);
  EXPECT_EQ(Get(), Kind::kNccl);
  world_.On([&] { EXPECT_EQ(accepted_.size(), 1u) << "one channel for all"; });
  Break(Kind::kNccl);
  ASSERT_TRUE(world_.Until([&] { return !Known().has_value(); }));
  // After a millisecond each Get may bring it back; what there is serves meanwhile.
  for (bool back = false; !back;) {
    const Kind kind = Get();
    ASSERT_TRUE(kind == Kind::kTcp || kind == Kind::kNccl);
    back = kind == Kind::kNccl;
  }
  // With it gone again, the channel that followed it is still there.
  Break(Kind::kNccl);
  ASSERT_TRUE(world_.Until([&] { return Known() == Kind::kTcp; }));
  // With that gone, too, there is none.
  Break(Kind::kTcp);
  ASSERT_TRUE(world_.Until([&] { return Known() != Kind::kTcp; }));
}

TEST_F(ChannelCacheTest, AFallbackThatBreaksLeavesNcclAlone) {
  EXPECT_EQ(Get(), Kind::kNccl);
  Break(Kind::kNccl);
  ASSERT_TRUE(world_.Until([&] { return !Known().has_value(); }));
  while (Get() != Kind::kNccl) {
  }
  Break(Kind::kTcp);
  world_.On([] {});
  EXPECT_EQ(Get(), Kind::kNccl);
}

}  // namespace
}  // namespace penstock::prefill
