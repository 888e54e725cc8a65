// SPDX-License-Identifier: Apache-2.0
#include "transfer/fault_link.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/seed_testing.h"
#include "base/virtual_loop.h"
#include "kernels/crc32c.h"
#include "transfer/channel.h"
#include "transfer/inproc_link.h"

namespace penstock::transfer {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kSegmentBytes = 64 << 10;

struct OneRead {
  std::vector<std::vector<ByteRun>> runs;
  std::vector<Unit> units;
  std::vector<std::uint32_t> crcs;
  std::vector<std::byte> memory, want, at_end;
  int ends = 0;
  absl::Status status;
  MonoTime deadline, ended;
  ReadId id{};
};

// What two peers do to each other by chance, under faults, until all has ended.
class World {
 public:
  World(std::uint64_t seed, const FaultPlan& faults) : random_(seed) {
    for (Side& side : sides_) {
      side.bytes.resize(kSegmentBytes);
      for (std::byte& b : side.bytes) b = static_cast<std::byte>(random_());
      side.segment = side.table.Register({.bytes = side.bytes});
    }
    auto [first, second] = MakeInprocLinks(loop_, sides_[0].table, sides_[1].table);
    std::unique_ptr<Link> links[] = {std::move(first), std::move(second)};
    for (std::size_t i = 0; i < 2; ++i) {
      FaultPlan plan = faults;
      plan.seed = seed * 2 + i;
      sides_[i].channel = std::make_unique<Channel>(
          loop_, Peer{"peer", 1}, MakeFaultLink(loop_, std::move(links[i]), plan));
      Side& side = sides_[i];
      side.channel->Start({.on_message = [&side](auto) { ++side.messages; },
                           .on_closed = [&side](auto&) { ++side.closed; }});
    }
  }

  ~World() {
    for (Side& side : sides_) side.channel.reset();  // Before the tables that they watch.
  }

  void Run() {
    for (int step = 0; step < 200; ++step) {
      Side& mine = sides_[random_() % 2];
      Side& other = &mine == &sides_[0] ? sides_[1] : sides_[0];
      switch (random_() % 8) {
        case 0:
          (void)mine.channel->Send(std::vector<std::byte>(1 + random_() % 100));
          break;
        case 1:
          if (!mine.reads.empty()) {
            mine.channel->Cancel(mine.reads[random_() % mine.reads.size()]->id);
          }
          break;
        case 2:
          // The owner breaks its word: a checksum must tell.
          mine.bytes[random_() % kSegmentBytes] ^= std::byte{1};
          break;
        case 3:
          loop_.Advance(milliseconds(random_() % 20));
          break;
        case 4:
          loop_.RunUntilIdle(random_() % 5);
          break;
        default:
          Read(mine, other);
      }
    }
    loop_.RunAll(MonoTime::max());
    for (const Side& side : sides_) Check(side);
  }

  int Count(absl::StatusCode code) const {
    int count = 0;
    for (const Side& side : sides_) {
      count += static_cast<int>(std::count_if(side.reads.begin(), side.reads.end(),
                                              [&](auto& r) { return r->status.code() == code; }));
    }
    return count;
  }
  int messages() const { return sides_[0].messages + sides_[1].messages; }
  int closed() const { return sides_[0].closed + sides_[1].closed; }

 private:
  struct Side {
    SegmentTable table;
    std::vector<std::byte> bytes;
    SegmentId segment{};
    std::vector<std::unique_ptr<OneRead>> reads;
    int messages = 0, closed = 0;
    std::unique_ptr<Channel> channel;
  };

  void Read(Side& mine, const Side& other) {
    auto read = std::make_unique<OneRead>();
    const std::size_t units = 1 + random_() % 3;
    read->memory.assign(units * 4096, std::byte{0xEE});
    read->want = read->memory;
    for (std::size_t u = 0; u < units; ++u) {
      const auto bytes = static_cast<std::uint32_t>(random_() % 2049);
      read->runs.push_back({{0, 0, bytes}, {bytes + 100, 2048, bytes / 2}});
      read->units.push_back(
          {.from = random_() % (kSegmentBytes - 8192), .to = nullptr, .runs = {}});
      std::uint32_t crc = 0;
      for (const ByteRun& run : read->runs[u]) {
        const std::byte* const source = other.bytes.data() + read->units[u].from + run.from;
        crc = kernels::Crc32c(crc, source, run.bytes);
        std::copy_n(source, run.bytes, read->want.begin() + static_cast<long>(u * 4096 + run.to));
      }
      read->crcs.push_back(crc);
    }
    for (std::size_t u = 0; u < units; ++u) {
      read->units[u].to = read->memory.data() + u * 4096;
      read->units[u].runs = read->runs[u];
    }
    OneRead* const raw = read.get();
    raw->deadline = loop_.Now() + milliseconds(random_() % 60);
    raw->id = mine.channel->Read({.segment = other.segment,
                                  .units = raw->units,
                                  .crcs = raw->crcs,
                                  .deadline = raw->deadline},
                                 [this, raw](const absl::Status& status) {
                                   ++raw->ends;
                                   raw->status = status;
                                   raw->at_end = raw->memory;
                                   raw->ended = loop_.Now();
                                 });
    mine.reads.push_back(std::move(read));
  }

  void Check(const Side& side) const {
    for (const auto& read : side.reads) {
      ASSERT_EQ(read->ends, 1);
      EXPECT_EQ(read->memory, read->at_end) << "written after its end";
      if (read->status.ok()) {
        EXPECT_EQ(read->memory, read->want) << "corrupt bytes accepted";
      }
      EXPECT_LE(read->ended, read->deadline);
    }
    EXPECT_LE(side.closed, 1);
    EXPECT_EQ(side.closed == 0, side.channel->open());
    EXPECT_EQ(side.channel->reads_pending(), 0u);
    EXPECT_EQ(side.channel->stats().reads, static_cast<std::int64_t>(side.reads.size()));
  }

  std::mt19937_64 random_;
  VirtualLoop loop_;
  Side sides_[2];
};

TEST(FaultLinkTest, ChannelsKeepTheirWordUnderFaults) {
  int ok = 0, corrupt = 0, late = 0, cancelled = 0, unavailable = 0;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const RunningSeed running(seed);
    World world(seed, {.drop_message = 0.1,
                       .delay_message = 0.2,
                       .duplicate_message = 0.1,
                       .corrupt_message = 0.1,
                       .delay_read = 0.4,
                       .corrupt_read = 0.1,
                       .disconnect = seed % 3 == 0 ? 0.01 : 0});
    world.Run();
    if (HasFatalFailure()) return;
    ok += world.Count(absl::StatusCode::kOk);
    corrupt += world.Count(absl::StatusCode::kDataLoss);
    late += world.Count(absl::StatusCode::kDeadlineExceeded);
    cancelled += world.Count(absl::StatusCode::kCancelled);
    unavailable += world.Count(absl::StatusCode::kUnavailable);
  }
  // All of it came about, often.
  for (const int count : {ok, corrupt, late, cancelled, unavailable}) EXPECT_GT(count, 300);
}

TEST(FaultLinkTest, EachFaultIsTheOneAskedFor) {
  struct Case {
    const char* name;
    FaultPlan plan;
    absl::StatusCode want;  // Of every read that ends otherwise than well.
  };
  for (const Case& c : {Case{"corrupt", {.corrupt_read = 1}, absl::StatusCode::kDataLoss},
                        Case{"cut off", {.disconnect = 1}, absl::StatusCode::kUnavailable},
                        Case{"late",
                             {.delay_read = 1, .delay_max = std::chrono::hours(1)},
                             absl::StatusCode::kDeadlineExceeded}}) {
    SCOPED_TRACE(c.name);
    SegmentTable tables[2];
    VirtualLoop loop;
    std::vector<std::byte> source(1000, std::byte{3}), memory(1000);
    const SegmentId segment = tables[1].Register({.bytes = source});
    auto [first, second] = MakeInprocLinks(loop, tables[0], tables[1]);
    Channel channel(loop, {"peer", 1}, MakeFaultLink(loop, std::move(first), c.plan));
    int closed = 0;
    channel.Start({.on_message = {}, .on_closed = [&](auto&) { ++closed; }});
    const std::vector<ByteRun> runs = {{0, 0, 1000}};
    std::vector<absl::Status> ends;
    channel.Read({.segment = segment,
                  .units = {{.from = 0, .to = memory.data(), .runs = runs}},
                  .crcs = {kernels::Crc32c(0, source.data(), 1000)},
                  .deadline = loop.Now() + milliseconds(1)},
                 [&](const absl::Status& status) { ends.push_back(status); });
    loop.RunAll(MonoTime::max());
    ASSERT_EQ(ends.size(), 1u);
    EXPECT_EQ(ends[0].code(), c.want) << ends[0];
    EXPECT_EQ(closed, c.want == absl::StatusCode::kUnavailable ? 1 : 0);
    EXPECT_EQ(channel.stats().units_corrupt, c.want == absl::StatusCode::kDataLoss ? 1 : 0);
  }
}

TEST(FaultLinkTest, MessagesAreDroppedRepeatedAndChanged) {
  struct Case {
    const char* name;
    FaultPlan plan;
    std::size_t want_count;
    bool want_equal;
  };
  for (const Case& c : {Case{"none", {}, 1, true}, Case{"drop", {.drop_message = 1}, 0, true},
                        Case{"duplicate", {.duplicate_message = 1}, 2, true},
                        Case{"corrupt", {.corrupt_message = 1}, 1, false},
                        Case{"delay", {.delay_message = 1}, 1, true}}) {
    SCOPED_TRACE(c.name);
    SegmentTable tables[2];
    VirtualLoop loop;
    const MonoTime start = loop.Now();
    auto [first, second] = MakeInprocLinks(loop, tables[0], tables[1]);
    Channel from(loop, {"b", 1}, MakeFaultLink(loop, std::move(first), c.plan));
    Channel to(loop, {"a", 1}, std::move(second));
    const std::vector<std::byte> message(10, std::byte{5});
    std::vector<std::vector<std::byte>> got;
    to.Start(
        {.on_message = [&](auto m) { got.emplace_back(m.begin(), m.end()); }, .on_closed = {}});
    from.Start({});
    ASSERT_TRUE(from.Send(message).ok());
    loop.RunAll(MonoTime::max());
    ASSERT_EQ(got.size(), c.want_count);
    for (const auto& m : got) EXPECT_EQ(m == message, c.want_equal);
    EXPECT_EQ(loop.Now() > start, c.plan.delay_message > 0);
  }
}

}  // namespace
}  // namespace penstock::transfer
