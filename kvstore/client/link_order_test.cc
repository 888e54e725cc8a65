// SPDX-License-Identifier: Apache-2.0
// Whose turn it is, in a worker that keeps copies of its blocks while a prompt's KV comes to it, all
// over one link.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kvstore/client/store_fixture.h"
#include "transfer/handoff_receiver.h"
#include "transfer/handoff_sender.h"
#include "transfer/inproc_link.h"

namespace penstock::kvstore {
namespace {

using transfer::MoveClass;

constexpr std::int32_t kBlocks = 8;

// One side of a handoff: a pool of kBlocks slabs.
struct Side {
  explicit Side(std::byte fill) : layout(TestLayout(8)), memory(Pages()) {
    std::ranges::fill(memory.get(), fill);
    groups = {{.segment = table.Register(transfer::SegmentTable::Segment{.bytes = memory.get()}),
               .slab_bytes = layout.block_bytes(),
               .side = {.layout = layout}}};
  }
  std::size_t Pages() const { return kBlocks * layout.block_bytes() / HostTier::kPageBytes; }
  std::byte* slab(std::int32_t i) {
    return memory.get().data() + static_cast<std::size_t>(i) * layout.block_bytes();
  }
  const PageLayout layout;
  TestMemory memory;
  transfer::SegmentTable table;
  std::vector<transfer::PoolGroup> groups;
};

using LinkOrderTest = StoreTest;

TEST_F(LinkOrderTest, AHandoffOvertakesWriteBacks) {
  Start({}, {.slots = 12});
  worker_->turns().Set("local", {.moves_max = 1});
  Side from(std::byte{7});
  Side to(std::byte{0});
  transfer::HandoffSender sender(loop_, from.groups, {from.memory.get().data()}, nullptr);
  transfer::HandoffReceiver receiver(loop_, worker_->turns(), to.groups,
                                     {.bytes_in_flight_max = 4096}, nullptr);
  auto [theirs, mine] = transfer::MakeInprocLinks(loop_, from.table, to.table);
  transfer::Channel& channel = sender.AddPeer(
      std::make_unique<transfer::Channel>(loop_, transfer::Peer{"decode", 1}, std::move(theirs)));
  receiver.AddPeer(
      std::make_unique<transfer::Channel>(loop_, transfer::Peer{"prefill", 1}, std::move(mine)));
  loop_.RunUntilIdle();

  const transfer::Grant grant{1, 1};
  transfer::HandoffReceiver::Target target;
  target.groups.emplace_back();
  for (std::int32_t i = 0; i < kBlocks; ++i) target.groups[0].slabs.push_back(to.slab(i));
  target.end_block = kBlocks;
  target.deadline = loop_.Now() + seconds(1);
  std::optional<std::uint64_t> taken_then;  // Blocks kept, when the handoff had ended.
  std::size_t waiting_then = 0;
  receiver.Expect(grant, target, [&](const transfer::HandoffReceiver::Outcome& outcome) {
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    taken_then = worker_->keeper().stats().taken;
    waiting_then = worker_->turns().queue("local")->waiting(MoveClass::kWriteBack);
  });
  sender.Begin(grant, channel, target.deadline, [](const transfer::HandoffSender::Outcome&) {});

  worker_->Compute(TestChains(1, 40));
  const transfer::LinkQueue& queue = *worker_->turns().queue("local");
  while (queue.waiting(MoveClass::kWriteBack) < 10) ASSERT_EQ(loop_.RunUntilIdle(1), 1u);
  for (std::int32_t layer = 0; layer < 2; ++layer) {
    transfer::HandoffSender::Told told;
    told.cache_layer = layer;
    for (std::uint32_t i = 0; i < kBlocks; ++i) told.slabs.push_back(i);
    sender.Tell(grant, told);
  }
  // Until the first read of the handoff waits for its turn, or moves.
  while (queue.waiting(MoveClass::kHandoff) + queue.under_way(MoveClass::kHandoff).moves == 0) {
    ASSERT_EQ(loop_.RunUntilIdle(1), 1u);
  }
  const std::uint64_t taken_before = worker_->keeper().stats().taken;
  loop_.RunUntilIdle();
  ASSERT_TRUE(taken_then.has_value());
  // Of what was asked for before it, what was under way, and at most one as the oldest of all.
  EXPECT_LE(*taken_then, taken_before + 2);
  EXPECT_GE(waiting_then, 8u);
  EXPECT_EQ(std::memcmp(to.slab(0), from.slab(0), kBlocks * to.layout.block_bytes()), 0);
  Settle();
  EXPECT_EQ(worker_->keeper().stats().taken, 40u);
  EXPECT_EQ(queue.under_way().moves, 0u);
}

}  // namespace
}  // namespace penstock::kvstore
