// SPDX-License-Identifier: Apache-2.0
// For tests of TierSet: a store node's tiers on a virtual clock, with frames by chain and index.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kvstore/client/store_testing.h"

namespace penstock::kvstore {

// Of every TestFrame, in whole pages.
inline constexpr std::uint32_t kTestFramePages = 2;
inline constexpr std::uint32_t kTestFrameBytes = kTestFramePages * HostTier::kPageBytes;

// Block `index` of a chain, as a put of its frame says it.
inline TierSet::Copy CopyOfBlock(const std::vector<Chain>& chains, std::int32_t index,
                                 std::uint32_t tenant, std::size_t bytes) {
  const auto at = static_cast<std::size_t>(index);
  TierSet::Copy copy = {.key = TestCopyKey(chains[at]),
                        .bytes = static_cast<std::uint32_t>(bytes),
                        .tenant = tenant,
                        .tokens_before = static_cast<std::uint32_t>(index) * 8,
                        .codec = static_cast<std::uint8_t>(CodecId::kRaw)};
  if (index > 0) copy.parent = TestCopyKey(chains[at - 1]);
  return copy;
}

inline absl::Status PutBlock(TierSet& tiers, const std::vector<Chain>& chains, std::int32_t index,
                             std::uint32_t tenant = 0, const std::vector<std::byte>& secret = {}) {
  const Bytes frame = TestFrame(chains[static_cast<std::size_t>(index)], index, secret);
  const TierSet::Copy copy = CopyOfBlock(chains, index, tenant, frame.size());
  ASSIGN_OR_RETURN(const std::span<std::byte> room, tiers.BeginPut(copy));
  std::ranges::copy(frame, room.begin());
  tiers.EndPut(copy.key, absl::OkStatus());
  return absl::OkStatus();
}

// What a get was told.
struct TestGet {
  std::optional<absl::Status> status;
  Tier from = Tier::kHost;
  Bytes frame;  // As it lay in host memory then.
};
inline std::shared_ptr<TestGet> GetBlock(TierSet& tiers, const BlockKey& key, MonoTime deadline) {
  const auto get = std::make_shared<TestGet>();
  tiers.Get(key, deadline, [get, &tiers](const absl::StatusOr<TierSet::Got>& got) {
    ASSERT_FALSE(get->status.has_value()) << "told twice";
    get->status = got.status();
    if (!got.ok()) return;
    get->from = got->from;
    const std::span<std::byte> bytes = tiers.host().Bytes(got->found.place, got->found.copy.bytes);
    get->frame.assign(bytes.begin(), bytes.end());
  });
  return get;
}

class TierSetTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kSegment = 32 * 4096;  // Of TestNode's disk.

  void Start(const TestNode::Options& options, FakeDisk::Images images = {}) {
    node_.reset();
    node_ = std::make_unique<TestNode>(loop_, 1, options, std::move(images));
  }
  TierSet& tiers() { return *node_->tiers; }
  void Put(std::int32_t begin, std::int32_t end, std::uint32_t tenant = 0) {
    for (std::int32_t i = begin; i < end; ++i) {
      ASSERT_TRUE(PutBlock(tiers(), chains_, i, tenant, node_->options.server.secret).ok()) << i;
    }
  }
  // As the disk keeps up.
  void PutSlowly(std::int32_t begin, std::int32_t end) {
    for (std::int32_t i = begin; i < end; ++i) {
      Put(i, i + 1);
      loop_.Advance(std::chrono::milliseconds(50));
    }
  }
  BlockKey Key(std::int32_t index) const {
    return TestCopyKey(chains_[static_cast<std::size_t>(index)]);
  }
  // Of one block; the loop runs until it was told. OK only with the right bytes.
  absl::Status Get(std::int32_t index, Duration within = std::chrono::seconds(5)) {
    const auto get = GetBlock(tiers(), Key(index), loop_.Now() + within);
    loop_.Advance(within);
    EXPECT_TRUE(get->status.has_value());
    if (!get->status.has_value()) return absl::InternalError("never told");
    if (!get->status->ok()) return *get->status;
    from_ = get->from;
    const Bytes want =
        TestFrame(chains_[static_cast<std::size_t>(index)], index, node_->options.server.secret);
    return get->frame == want ? absl::OkStatus() : absl::InternalError("other bytes");
  }
  // "host+disk", "disk+remote pinned", or "" where it is nowhere.
  std::string Where(std::int32_t index) {
    const std::optional<TierSet::Listed> listed = tiers().Describe(Key(index));
    if (!listed.has_value()) return "";
    std::string text;
    const auto add = [&](bool there, const char* name) {
      if (there) text += (text.empty() ? "" : "+") + std::string(name);
    };
    add(listed->host, "host");
    add(listed->disk, "disk");
    add(listed->remote, "remote");
    return text + (listed->pinned ? " pinned" : "");
  }
  // Everything is out of host memory.
  void Flush() {
    tiers().FlushHost();
    loop_.Advance(std::chrono::seconds(1));
    EXPECT_EQ(tiers().leaving(), 0u);
  }

  VirtualLoop loop_;
  const std::vector<Chain> chains_ = TestChains(1, 64);
  std::unique_ptr<TestNode> node_;
  Tier from_ = Tier::kHost;
};

}  // namespace penstock::kvstore
