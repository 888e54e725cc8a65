// SPDX-License-Identifier: Apache-2.0
#include "transfer/handoff_messages.h"

#include <algorithm>
#include <string>

#include "base/status.h"
#include "gtest/gtest.h"
#include "transfer/messages_testing.h"

namespace penstock::transfer {
namespace {

PoolGroup Group() {
  const KvGroup shape{.window_tokens = 512,
                      .cache_layers = 30,
                      .kv_heads = 3,
                      .k_dim = 64,
                      .v_dim = 64,
                      .dtype = KvDtype::kBF16};
  PoolGroup group;
  group.segment = SegmentId{7};
  group.side = {.layout = *PageLayout::Make(shape, 32, 16), .head_begin = 3};
  group.slab_bytes = group.side.layout.slab_bytes();
  return group;
}

// On three GPUs, the last of which has no layer.
PoolGroup OnGpus() {
  PoolGroup group = Group();
  group.parts = {{SegmentId{8}, 4096 * 1024, {0, 10, 3, 2}},
                 {SegmentId{9}, 4096 * 1024, {10, 20, 4, 2}},
                 {SegmentId{}, 0, {30, 0, 5, 1}}};
  return group;
}

std::vector<HandoffMessage> All() {
  return {PoolMessage{{Group(), OnGpus()}},
          PoolMessage{},
          ReadyMessage{.grant = {1, 2},
                       .group = 1,
                       .cache_layer = 29,
                       .first_block = 5,
                       .lineage = {LossClass::kKl3, 6},
                       .blocks = {{3, {0xdeadbeef, 5}}, {4, {1, 6}}}},
          ReceivedMessage{{3, 4}},
          MappedMessage{{7, 8}, 0, 45},
          WantedMessage{{9, 10}, 44, 45},
          FailedMessage{{5, 6}, absl::UnavailableError("gone")}};
}

TEST(HandoffMessagesTest, ComeBackAsTheyWere) {
  ExpectMessagesComeBack(All(), Decode);
  const auto pool = std::get<PoolMessage>(*Decode(Encode(PoolMessage{{Group()}})));
  EXPECT_EQ(pool.groups[0].segment, SegmentId{7});
  EXPECT_EQ(pool.groups[0].side.layout.page_tokens, 16);
  EXPECT_EQ(pool.groups[0].side.layout.group.window_tokens, 512);
  EXPECT_EQ(pool.groups[0].side.head_begin, 3);
  const auto split = std::get<PoolMessage>(*Decode(Encode(PoolMessage{{OnGpus()}})));
  ASSERT_EQ(split.groups[0].parts.size(), 3u);
  EXPECT_EQ(split.groups[0].SegmentOf(1), SegmentId{9});
  EXPECT_EQ(split.groups[0].SlabBytesOf(0), 4096u * 1024);
  EXPECT_EQ(split.groups[0].SlabParts()[1].end_layer(), 30);
  EXPECT_EQ(split.groups[0].SlabParts()[2].head_begin, 5);
  const auto failed = std::get<FailedMessage>(*Decode(Encode(All().back())));
  EXPECT_EQ(failed.status, absl::UnavailableError("gone"));
}

TEST(HandoffMessagesTest, ReasonsAreCut) {
  const FailedMessage message{{1, 1}, absl::InternalError(std::string(5000, 'x'))};
  const auto decoded = std::get<FailedMessage>(*Decode(Encode(message)));
  EXPECT_EQ(decoded.status.message().size(), kReasonBytesMax);
}

TEST(HandoffMessagesTest, EveryCutAndEveryExtraByteIsRefused) {
  ExpectCutsAreRefused(All(), Decode);
}

// What is read for a block of one place is not taken for one of another.
TEST(HandoffMessagesTest, ChecksumsFitNoOtherPlace) {
  const auto right = std::get<ReadyMessage>(*Decode(Encode(All()[2])));
  EXPECT_EQ(right.blocks[0].crcs[0], 0xdeadbeef);
  EXPECT_EQ(right.blocks[1].crcs[1], 6u);
  EXPECT_EQ(right.lineage, (Lineage{LossClass::kKl3, 6}));
  int damaged = 0;
  for (std::size_t at = 1; at < 1 + 16 + 3 * 4 + 1 + 4; ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::vector<std::byte> bytes = Encode(All()[2]);
      bytes[at] ^= std::byte{1} << bit;
      const auto decoded = Decode(bytes);
      if (!decoded.ok()) continue;
      ++damaged;
      for (const ReadyMessage::Block& block : std::get<ReadyMessage>(*decoded).blocks) {
        for (const std::uint32_t crc : block.crcs) {
          for (const ReadyMessage::Block& other : right.blocks) {
            EXPECT_EQ(std::ranges::count(other.crcs, crc), 0) << at;
          }
        }
      }
    }
  }
  EXPECT_GT(damaged, 16 * 8);
}

TEST(HandoffMessagesTest, ErrorsNameFieldAndNumbers) {
  std::vector<std::byte> bytes = Encode(All()[2]);
  bytes[0] = std::byte{9};
  EXPECT_EQ(Decode(bytes).status().message(),
            "type of a handoff message must be from 1 to 6, got 9");
  bytes = Encode(All()[2]);
  bytes[1 + 16] = std::byte{64};  // group
  EXPECT_EQ(Decode(bytes).status().message(), "group must be from 0 to 63, got 64");
  bytes = Encode(All()[2]);
  bytes[1 + 16 + 12] = std::byte{3};  // loss
  EXPECT_EQ(Decode(bytes).status().message(), "loss class must be from 0 to 2, got 3");
  bytes = Encode(All()[2]);
  bytes[1 + 16 + 17] = std::byte{129};  // legs
  EXPECT_EQ(Decode(bytes).status().message(), "legs must be from 1 to 128, got 129");
  // Written otherwise, that would be another message of the same.
  bytes = Encode(ReadyMessage());
  bytes[1 + 16 + 17] = std::byte{2};
  EXPECT_EQ(Decode(bytes).status().message(), "legs of no blocks must be from 1 to 1, got 2");
  bytes = Encode(All()[2]);
  bytes[1 + 16 + 18] = std::byte{3};  // count, more than there is room for
  EXPECT_EQ(Decode(bytes).status().message(), "blocks must be from 0 to 2, got 3");
  bytes = Encode(PoolMessage{{Group()}});
  bytes[1 + 4 + 4 + 8] = std::byte{33};  // block_tokens
  EXPECT_EQ(Decode(bytes).status().code(), absl::StatusCode::kInvalidArgument);
}

// What lies outside of its pool, or needs more than its slabs have.
TEST(HandoffMessagesTest, PartsMustLieInThePool) {
  struct Case {
    SlabPart slab;
    std::uint64_t slab_bytes;
    const char* want;
  };
  for (const Case& c : {Case{{31, 0, 3, 1}, 1 << 20, "first layer of a part"},
                        Case{{10, 21, 3, 1}, 1 << 20, "layers of a part"},
                        Case{{0, 1, 2, 1}, 1 << 20, "head_begin of a part"},
                        Case{{0, 1, 3, 4}, 1 << 20, "kv_heads of a part"},
                        Case{{0, 1, 3, 0}, 1 << 20, "kv_heads of a part"},
                        Case{{0, 30, 3, 3}, 4096, "slab_bytes of a part"}}) {
    SCOPED_TRACE(c.want);
    PoolGroup group = Group();
    group.parts = {{SegmentId{8}, c.slab_bytes, c.slab}};
    const absl::Status status = Decode(Encode(PoolMessage{{group}})).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(status.message().find(c.want) != absl::string_view::npos) << status;
  }
}

TEST(HandoffMessagesTest, NoDamagedPoolIsTakenForOne) {
  std::vector<std::byte> bytes = Encode(PoolMessage{{Group(), OnGpus()}});
  for (std::size_t bit = 8; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= std::byte(1u << bit % 8);
    EXPECT_EQ(Decode(bytes).status().code(), absl::StatusCode::kInvalidArgument) << bit;
    bytes[bit / 8] ^= std::byte(1u << bit % 8);
  }
}

}  // namespace
}  // namespace penstock::transfer
