// SPDX-License-Identifier: Apache-2.0
// What a link of kind nccl is made of and needs no GPU: frames, joined checksums, cuts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/crc32c.h"
#include "transfer/crc_parts.h"
#include "transfer/nccl_copies.h"
#include "transfer/nccl_frames.h"

namespace penstock::transfer {
namespace {

TEST(CrcPartsTest, JoinedIsThatOfTheWhole) {
  std::mt19937 random(1);
  std::vector<std::byte> bytes(100000);
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random()); });
  for (std::size_t i = 0; i < 200; ++i) {
    const std::size_t n = i < 4 ? i : random() % bytes.size();
    const std::size_t at = n == 0 ? 0 : random() % (n + 1);
    SCOPED_TRACE(testing::Message() << at << " of " << n);
    EXPECT_EQ(JoinCrc32c(kernels::Crc32c(0, bytes.data(), at),
                         kernels::Crc32c(0, bytes.data() + at, n - at), n - at),
              kernels::Crc32c(0, bytes.data(), n));
  }
}

TEST(NcclFramesTest, GoThereAndBack) {
  using Type = NcclFrame::Type;
  NcclId id;
  std::strcpy(id.bytes, "an id");
  const NcclFrame frames[] = {
      {.type = Type::kOpen, .id = id},
      {.type = Type::kOpened},
      {.type = Type::kClosed, .text = "why"},
      {.type = Type::kPacked, .number = 1, .read = 2, .bytes = 3},
      {.type = Type::kSkip, .number = 4},
      {.type = Type::kReady, .number = 5, .order = 6},
      {.type = Type::kGo, .number = 7, .order = 8},
  };
  for (const NcclFrame& frame : frames) {
    SCOPED_TRACE(static_cast<int>(frame.type));
    std::vector<std::byte> payload = frame.Encode();
    const auto again = NcclFrame::Decode(payload);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->type, frame.type);
    EXPECT_EQ(again->number, frame.number);
    EXPECT_EQ(again->order, frame.order);
    EXPECT_EQ(again->read, frame.read);
    EXPECT_EQ(again->bytes, frame.bytes);
    EXPECT_EQ(again->text, frame.text);
    EXPECT_EQ(std::memcmp(again->id.bytes, frame.id.bytes, sizeof(id.bytes)), 0);
    for (std::size_t n = 0; n < payload.size(); ++n) {
      EXPECT_FALSE(NcclFrame::Decode(std::span(payload).first(n)).ok()) << n;
    }
    payload.push_back({});
    EXPECT_FALSE(NcclFrame::Decode(payload).ok());
  }
  const std::byte unknown[] = {std::byte{99}};
  EXPECT_FALSE(NcclFrame::Decode(unknown).ok());
}

TEST(NcclFramesTest, LongReasonsAreCut) {
  const NcclFrame frame = {.type = NcclFrame::Type::kClosed, .text = std::string(5000, 'x')};
  EXPECT_EQ(NcclFrame::Decode(frame.Encode())->text.size(), NcclFrame::kTextBytesMax);
}

// Both sides of a read cut it alike, and what went through the slots is what was asked for.
TEST(CutSlotTest, BothSidesAgree) {
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed=" << seed);
    std::mt19937 random(seed);
    const std::size_t slot_bytes = 1 + random() % 300000;
    std::vector<std::byte> source(std::size_t{1} << 20);
    std::generate(source.begin(), source.end(), [&] { return static_cast<std::byte>(random()); });
    std::vector<std::vector<ByteRun>> runs(1 + random() % 6);
    std::vector<Unit> units;
    std::size_t total = 0;
    for (auto& mine : runs) {
      // Now and then more runs than a slot's tables have.
      const std::size_t count = random() % 5 == 0 ? 5000 : random() % 9;
      for (std::size_t r = 0; r < count; ++r) {
        const auto bytes = static_cast<std::uint32_t>(random() % (count > 9 ? 50 : 90000));
        mine.push_back({static_cast<std::uint32_t>(random() % 900000),
                        static_cast<std::uint32_t>(total), bytes});
        total += bytes;
      }
    }
    std::vector<std::byte> target(total + 1), want(total + 1);
    std::vector<std::uint32_t> crcs(runs.size()), want_crcs(runs.size());
    for (std::size_t u = 0; u < runs.size(); ++u) {
      units.push_back({.from = 100, .to = target.data(), .runs = runs[u]});
      for (const ByteRun& run : runs[u]) {
        std::memcpy(want.data() + run.to, source.data() + 100 + run.from, run.bytes);
        want_crcs[u] = kernels::Crc32c(want_crcs[u], source.data() + 100 + run.from, run.bytes);
      }
    }
    UnitCursor packs(units), unpacks(units);
    std::vector<std::byte> staged(slot_bytes);
    const auto tables = std::make_unique<CopyTables>();
    const NcclRing::Slot slot = {staged.data(), tables.get()};
    const auto copy = [&](const SlotCut& cut, auto each) {
      for (std::size_t i = 0; i < cut.parts.size(); ++i) {
        std::uint32_t crc = 0;
        std::uint64_t bytes = 0;
        for (std::uint32_t r = 0; r < tables->units[i].runs; ++r) {
          const kernels::CopyRun& run = tables->runs[tables->units[i].first_run + r];
          std::memcpy(run.to, run.from, run.bytes);
          crc = kernels::Crc32c(crc, run.from, run.bytes);
          bytes += run.bytes;
        }
        EXPECT_EQ(bytes, cut.parts[i].bytes);
        each(cut.parts[i], crc);
      }
    };
    while (!packs.done()) {
      const SlotCut out = CutSlot(packs, slot_bytes, source.data(), slot);
      ASSERT_GT(out.bytes, 0u);
      copy(out, [](const SlotCut::Part&, std::uint32_t) {});
      const SlotCut in = CutSlot(unpacks, out.bytes, nullptr, slot);
      ASSERT_EQ(in.bytes, out.bytes);
      copy(in, [&](const SlotCut::Part& part, std::uint32_t crc) {
        crcs[part.unit] = JoinCrc32c(crcs[part.unit], crc, part.bytes);
      });
    }
    EXPECT_TRUE(unpacks.done());
    EXPECT_EQ(target, want);
    EXPECT_EQ(crcs, want_crcs);
  }
}

}  // namespace
}  // namespace penstock::transfer
