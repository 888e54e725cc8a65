// SPDX-License-Identifier: Apache-2.0
// What holds for links of every kind, seen through channels.
#include "transfer/link.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/crc32c.h"
#include "transfer/channel.h"
#include "transfer/link_testing.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;

std::vector<std::byte> Bytes(const std::string& text) {
  const auto* p = reinterpret_cast<const std::byte*>(text.data());
  return {p, p + text.size()};
}

// Two channels, a and b; each side has one segment that the other may read.
struct Pair {
  Pair(LinkWorld& w, std::size_t segment_bytes) : world(w) {
    world.On([&] {
      std::mt19937 random(7);
      for (Side* side : {&a, &b}) {
        side->data = world.Memory(segment_bytes, side->segment);
        std::generate_n(side->data, segment_bytes,
                        [&] { return static_cast<std::byte>(random()); });
        side->id = side->table.Register(side->segment);
      }
      auto [first, second] = world.Connect(a.table, b.table);
      a.channel = std::make_unique<Channel>(world.loop(), Peer{"b", 1}, std::move(first));
      b.channel = std::make_unique<Channel>(world.loop(), Peer{"a", 1}, std::move(second));
    });
  }
  ~Pair() {
    world.On([&] {
      a.channel.reset();
      b.channel.reset();
    });
  }
  void Start() {
    for (Side* side : {&a, &b}) side->Start();
  }

  struct Side {
    void Start() {
      channel->Start(
          {.on_message =
               [this](std::span<const std::byte> m) { messages.emplace_back(m.begin(), m.end()); },
           .on_closed = [this](const absl::Status& s) { closed.push_back(s); }});
    }
    SegmentTable table;
    SegmentTable::Segment segment;
    std::byte* data = nullptr;
    SegmentId id{};
    std::unique_ptr<Channel> channel;
    std::vector<std::vector<std::byte>> messages;
    std::vector<absl::Status> closed;
  };
  LinkWorld& world;
  Side a, b;
};

// A read of random units into memory of its own, and all its ends.
struct TestRead {
  // Units of 0 to 5 runs, ascending at the sender, anywhere at the reader.
  TestRead(std::mt19937& random, const Pair::Side& from, std::size_t run_bytes_max) {
    const std::size_t size = from.segment.bytes.size();
    const std::size_t count = 1 + random() % 8;
    std::size_t to_bytes = 0;
    for (std::size_t u = 0; u < count; ++u) {
      std::vector<ByteRun>& mine = runs.emplace_back();
      const std::size_t unit_from = random() % (size / 2);
      std::size_t at = 0;
      for (std::size_t r = random() % 6; r > 0; --r) {
        at += random() % 64;
        const std::size_t bytes =
            std::min(random() % run_bytes_max, size - unit_from - std::min(at, size - unit_from));
        mine.push_back({static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(to_bytes),
                        static_cast<std::uint32_t>(bytes)});
        if (unit_from + at + bytes > size) mine.pop_back();
        at += bytes;
        to_bytes += bytes + random() % 3;
      }
      units.push_back({.from = unit_from, .to = nullptr, .runs = {}});
    }
    memory.resize(to_bytes + 1, std::byte{0xEE});
    want = memory;
    for (std::size_t u = 0; u < count; ++u) {
      units[u].to = memory.data();
      units[u].runs = runs[u];
      std::uint32_t crc = 0;
      for (const ByteRun& run : runs[u]) {
        const std::byte* const source = from.segment.bytes.data() + units[u].from + run.from;
        std::copy_n(source, run.bytes, want.begin() + run.to);
        crc = kernels::Crc32c(crc, source, run.bytes);
      }
      crcs.push_back(crc);
    }
  }
  void Begin(Pair::Side& reader, SegmentId segment, Duration limit, Loop& loop) {
    id = reader.channel->Read(
        {.segment = segment, .units = units, .crcs = crcs, .deadline = loop.Now() + limit},
        [this](const absl::Status& status) {
          ends.push_back(status);
          at_end = memory;
        });
  }
  void CheckEnd() const {
    ASSERT_EQ(ends.size(), 1u);
    EXPECT_EQ(memory, at_end) << "written after its end";
    if (ends[0].ok()) {
      EXPECT_EQ(memory, want);
    }
  }

  std::vector<std::vector<ByteRun>> runs;
  std::vector<Unit> units;
  std::vector<std::uint32_t> crcs;
  std::vector<std::byte> memory, want, at_end;
  ReadId id{};
  std::vector<absl::Status> ends;
};

class LinkTest : public testing::TestWithParam<std::size_t> {
 protected:
  std::unique_ptr<LinkWorld> world = AllWorlds()[GetParam()].make();
};

TEST_P(LinkTest, MessagesArriveInOrderBothWays) {
  Pair pair(*world, 4096);
  std::vector<std::vector<std::byte>> sent;
  std::mt19937 random(1);
  for (std::size_t i = 0; i < 300; ++i) {
    const std::size_t size = i == 0 ? Link::kMessageBytesMax : i == 1 ? 1 : 1 + random() % 5000;
    std::vector<std::byte>& message = sent.emplace_back(size);
    std::generate(message.begin(), message.end(), [&] { return static_cast<std::byte>(random()); });
  }
  world->On([&] {
    pair.Start();
    for (const auto& message : sent) {
      EXPECT_TRUE(pair.a.channel->Send(message).ok());
      EXPECT_TRUE(pair.b.channel->Send(message).ok());
    }
    EXPECT_TRUE(pair.a.messages.empty());
  });
  ASSERT_TRUE(world->Until([&] {
    return pair.a.messages.size() >= sent.size() && pair.b.messages.size() >= sent.size();
  }));
  world->On([&] {
    EXPECT_EQ(pair.a.messages, sent);
    EXPECT_EQ(pair.b.messages, sent);
    EXPECT_EQ(pair.a.channel->stats().messages_sent, 300);
    EXPECT_EQ(pair.a.channel->stats().messages_received, 300);
  });
}

TEST_P(LinkTest, MessagesBeforeStartWaitAndAreBounded) {
  Pair pair(*world, 4096);
  std::size_t sent = 0;
  const std::vector<std::byte> message(Link::kMessageBytesMax, std::byte{1});
  // Without ever a turn of the loop for the link to drain in, then with some.
  ASSERT_TRUE(world->Until([&] {
    if (!pair.a.channel->open()) pair.a.Start();
    const absl::Status status = pair.a.channel->Send(message);
    if (status.ok()) {
      ++sent;
      world->loop().Post([] {});  // Go on.
      return false;
    }
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
    return true;
  }));
  EXPECT_GE(sent, Link::kQueueBytesMax / Link::kMessageBytesMax - 1);
  world->On([&] { pair.b.Start(); });
  ASSERT_TRUE(world->Until([&] { return pair.b.messages.size() >= sent; }));
  EXPECT_EQ(pair.b.messages.size(), sent);
}

TEST_P(LinkTest, ReadsOfManyShapesLand) {
  Pair pair(*world, 3 << 20);
  std::mt19937 random(2);
  std::vector<std::unique_ptr<TestRead>> reads;
  for (int i = 0; i < 200; ++i) {
    reads.push_back(std::make_unique<TestRead>(random, pair.b, i % 10 == 0 ? 1 << 19 : 3000));
  }
  world->On([&] {
    pair.Start();
    for (auto& read : reads) read->Begin(pair.a, pair.b.id, seconds(25), world->loop());
    for (auto& read : reads) EXPECT_TRUE(read->ends.empty());
  });
  ASSERT_TRUE(world->Until([&] { return pair.a.channel->reads_pending() == 0; }));
  world->On([&] {
    std::int64_t bytes = 0;
    for (const auto& read : reads) {
      read->CheckEnd();
      EXPECT_TRUE(read->ends[0].ok()) << read->ends[0];
      bytes += static_cast<std::int64_t>(TotalBytes(read->units));
    }
    EXPECT_EQ(pair.a.channel->stats().bytes_read, bytes);
    EXPECT_EQ(pair.a.channel->stats().reads_failed, 0);
  });
}

TEST_P(LinkTest, WrongReadsAreToldAndHarmNobody) {
  Pair pair(*world, 8192);
  const std::vector<ByteRun> run = {{0, 0, 100}};
  std::vector<std::byte> memory(100);
  struct Case {
    const char* name;
    std::uint32_t segment;
    std::uint64_t from;
    std::uint32_t crc_error;
    StatusCode want;
  };
  const Case cases[] = {
      {"no such segment", 77, 0, 0, StatusCode::kNotFound},
      {"ends one byte behind", 1, 8193 - 100, 0, StatusCode::kInvalidArgument},
      {"begins behind", 1, 8193, 0, StatusCode::kInvalidArgument},
      {"wraps around", 1, ~std::uint64_t{0} - 50, 0, StatusCode::kInvalidArgument},
      {"ends at the end", 1, 8192 - 100, 0, StatusCode::kOk},
      {"another checksum", 1, 0, 1, StatusCode::kDataLoss},
  };
  std::vector<std::vector<absl::Status>> ends(std::size(cases));
  world->On([&] {
    pair.Start();
    for (std::size_t i = 0; i < std::size(cases); ++i) {
      const Case& c = cases[i];
      const std::uint32_t crc =
          c.from <= 8192 - 100 ? kernels::Crc32c(0, pair.b.data + c.from, 100) : 0;
      pair.a.channel->Read({.segment = SegmentId{c.segment},
                            .units = {{.from = c.from, .to = memory.data(), .runs = run}},
                            .crcs = {crc ^ c.crc_error},
                            .deadline = world->loop().Now() + seconds(25)},
                           [&, i](const absl::Status& s) { ends[i].push_back(s); });
    }
  });
  ASSERT_TRUE(world->Until([&] { return pair.a.channel->reads_pending() == 0; }));
  for (std::size_t i = 0; i < std::size(cases); ++i) {
    SCOPED_TRACE(cases[i].name);
    ASSERT_EQ(ends[i].size(), 1u);
    EXPECT_EQ(ends[i][0].code(), cases[i].want) << ends[i][0];
  }
  world->On([&] {
    EXPECT_EQ(pair.a.channel->stats().units_corrupt, 1);
    EXPECT_EQ(pair.a.channel->stats().reads_failed, 5);
    EXPECT_TRUE(pair.a.channel->open() && pair.b.channel->open());
  });
}

TEST_P(LinkTest, CancelledAndLateReadsEndOnceAndLeaveTheirMemory) {
  Pair pair(*world, 4 << 20);
  std::mt19937 random(3);
  std::vector<std::unique_ptr<TestRead>> reads;
  for (int i = 0; i < 60; ++i) {
    reads.push_back(std::make_unique<TestRead>(random, pair.b, 1 << 19));
  }
  world->On([&] {
    pair.Start();
    for (std::size_t i = 0; i < reads.size(); ++i) {
      // A third is late before it can begin.
      const Duration limit = i % 3 == 1 ? Duration(0) : Duration(seconds(25));
      reads[i]->Begin(pair.a, pair.b.id, limit, world->loop());
      if (i % 3 == 2) {
        pair.a.channel->Cancel(reads[i]->id);
        pair.a.channel->Cancel(reads[i]->id);
        EXPECT_TRUE(reads[i]->ends.empty());
      }
    }
  });
  ASSERT_TRUE(world->Until([&] { return pair.a.channel->reads_pending() == 0; }));
  // What was asked for after them still gets through.
  TestRead last(random, pair.b, 1000);
  world->On([&] { last.Begin(pair.a, pair.b.id, seconds(25), world->loop()); });
  ASSERT_TRUE(world->Until([&] { return pair.a.channel->reads_pending() == 0; }));
  world->On([&] {
    last.CheckEnd();
    EXPECT_TRUE(last.ends[0].ok()) << last.ends[0];
    for (std::size_t i = 0; i < reads.size(); ++i) {
      SCOPED_TRACE(i);
      reads[i]->CheckEnd();
      const StatusCode code = reads[i]->ends[0].code();
      if (i % 3 == 0) {
        EXPECT_EQ(code, StatusCode::kOk);
      }
      if (i % 3 == 1) {
        EXPECT_TRUE(code == StatusCode::kOk || code == StatusCode::kDeadlineExceeded);
      }
      if (i % 3 == 2) {
        EXPECT_EQ(code, StatusCode::kCancelled);
      }
    }
    pair.a.channel->Cancel(reads[0]->id);  // Past: ignored.
  });
}

TEST_P(LinkTest, WithdrawnSegmentsFailTheirReadsOnly) {
  Pair pair(*world, 4 << 20);
  std::mt19937 random(4);
  std::vector<std::unique_ptr<TestRead>> reads;
  SegmentId other{};
  world->On([&] {
    other = pair.b.table.Register(pair.b.segment);
    EXPECT_NE(other, pair.b.id);
    pair.Start();
    for (int i = 0; i < 40; ++i) {
      reads.push_back(std::make_unique<TestRead>(random, pair.b, 1 << 19));
      reads.back()->Begin(pair.a, i % 2 == 0 ? pair.b.id : other, seconds(25), world->loop());
    }
  });
  ASSERT_TRUE(world->Until([&] { return !reads[3]->ends.empty(); }));
  world->On([&] { pair.b.table.Withdraw(other); });
  ASSERT_TRUE(world->Until([&] { return pair.a.channel->reads_pending() == 0; }));
  world->On([&] {
    reads.push_back(std::make_unique<TestRead>(random, pair.b, 1000));
    reads.back()->Begin(pair.a, other, seconds(25), world->loop());
  });
  ASSERT_TRUE(world->Until([&] { return pair.a.channel->reads_pending() == 0; }));
  EXPECT_EQ(reads.back()->ends[0].code(), StatusCode::kNotFound);
  reads.pop_back();
  for (std::size_t i = 0; i < reads.size(); ++i) {
    reads[i]->CheckEnd();
    const StatusCode code = reads[i]->ends[0].code();
    EXPECT_TRUE(code == StatusCode::kOk || (i % 2 == 1 && code == StatusCode::kNotFound))
        << i << " " << reads[i]->ends[0];
  }
  EXPECT_TRUE(reads[3]->ends[0].ok());
}

TEST_P(LinkTest, WhenThePeerGoesEverythingEndsOnce) {
  Pair pair(*world, 4 << 20);
  std::mt19937 random(5);
  std::vector<std::unique_ptr<TestRead>> reads;
  world->On([&] {
    pair.Start();
    for (int i = 0; i < 40; ++i) {
      reads.push_back(std::make_unique<TestRead>(random, pair.b, 1 << 19));
      reads.back()->Begin(pair.a, pair.b.id, seconds(25), world->loop());
    }
    EXPECT_TRUE(pair.b.channel->Send(Bytes("last words")).ok());
  });
  ASSERT_TRUE(world->Until([&] { return !reads[2]->ends.empty(); }));
  world->On([&] {
    pair.b.channel.reset();
    EXPECT_TRUE(pair.a.closed.empty());
  });
  ASSERT_TRUE(world->Until([&] { return !pair.a.closed.empty(); }));
  world->On([&] {
    EXPECT_EQ(pair.a.channel->reads_pending(), 0u);
    EXPECT_FALSE(pair.a.channel->open());
    EXPECT_EQ(pair.a.channel->Send(Bytes("x")).code(), StatusCode::kUnavailable);
    reads.push_back(std::make_unique<TestRead>(random, pair.b, 1000));
    reads.back()->Begin(pair.a, pair.b.id, seconds(25), world->loop());
    EXPECT_TRUE(reads.back()->ends.empty());
  });
  ASSERT_TRUE(world->Until([&] { return !reads.back()->ends.empty(); }));
  world->On([&] {
    EXPECT_EQ(pair.a.messages, (std::vector<std::vector<std::byte>>{Bytes("last words")}));
    ASSERT_EQ(pair.a.closed.size(), 1u);
    EXPECT_EQ(pair.a.closed[0].code(), StatusCode::kUnavailable) << pair.a.closed[0];
    for (const auto& read : reads) {
      read->CheckEnd();
      EXPECT_TRUE(read->ends[0].ok() || absl::IsUnavailable(read->ends[0])) << read->ends[0];
    }
    EXPECT_TRUE(absl::IsUnavailable(reads.back()->ends[0]));
  });
}

TEST_P(LinkTest, WhatIsMappedIsCheckedInPlaceAndOutlivesTheLink) {
  Pair pair(*world, 1 << 20);
  if (!pair.a.channel->maps()) {
    EXPECT_EQ(pair.a.channel->Mapped(pair.b.id).owner, nullptr);
    return;
  }
  std::mt19937 random(7);
  std::vector<std::unique_ptr<TestRead>> reads;
  world->On([&] {
    pair.Start();
    for (int i = 0; i < 6; ++i) {
      reads.push_back(std::make_unique<TestRead>(random, pair.b, 100000));
      for (Unit& unit : reads.back()->units) unit.to = nullptr;
      reads.back()->want = reads.back()->memory;  // Nothing is written.
      if (i == 5) {
        reads.back()->runs[0] = {{.bytes = 100}};
        reads.back()->units[0].runs = reads.back()->runs[0];
        reads.back()->crcs[0] = 12345;
      }
      reads.back()->Begin(pair.a, pair.b.id, seconds(25), world->loop());
    }
  });
  ASSERT_TRUE(world->Until([&] { return !reads.back()->ends.empty(); }));
  MappedMemory mapped;
  world->On([&] {
    for (int i = 0; i < 5; ++i) {
      EXPECT_TRUE(reads[static_cast<std::size_t>(i)]->ends[0].ok());
      EXPECT_EQ(reads[static_cast<std::size_t>(i)]->at_end,
                reads[static_cast<std::size_t>(i)]->want);
    }
    EXPECT_TRUE(absl::IsDataLoss(reads[5]->ends[0])) << reads[5]->ends[0];
    mapped = pair.a.channel->Mapped(pair.b.id);
    ASSERT_NE(mapped.owner, nullptr);
    EXPECT_EQ(pair.a.channel->Mapped(SegmentId{999}).owner, nullptr);
    pair.a.channel.reset();
  });
  EXPECT_TRUE(std::ranges::equal(mapped.bytes, pair.b.segment.bytes));
}

TEST_P(LinkTest, ChannelsMayBeDestroyedInsideEachOfTheirCallbacks) {
  for (const std::string where : {"message", "read", "closed"}) {
    SCOPED_TRACE(where);
    Pair pair(*world, 1 << 20);
    std::mt19937 random(6);
    std::vector<std::unique_ptr<TestRead>> reads;
    bool destroyed = false;
    world->On([&] {
      const auto destroy = [&, alive = std::make_shared<int>(1)] {
        pair.a.channel.reset();
        destroyed = *alive == 1;  // The closure is still there.
      };
      pair.b.Start();
      pair.a.channel->Start(
          {.on_message = [&, destroy](auto) { where == "message" ? destroy() : void(); },
           .on_closed = [&, destroy](auto&) { where == "closed" ? destroy() : void(); }});
      for (int i = 0; i < 5; ++i) {
        reads.push_back(std::make_unique<TestRead>(random, pair.b, 10000));
        if (i == 2 && where == "read") {
          pair.a.channel->Read({.segment = pair.b.id,
                                .units = reads[0]->units,
                                .crcs = reads[0]->crcs,
                                .deadline = world->loop().Now() + seconds(25)},
                               [&, destroy](auto&) { destroy(); });
        }
        reads.back()->Begin(pair.a, pair.b.id, seconds(25), world->loop());
        EXPECT_TRUE(pair.b.channel->Send(Bytes("m")).ok());
      }
    });
    if (where == "closed") {
      // Not while the two still connect: libucp 1.13 may end the process of who is left then.
      ASSERT_TRUE(world->Until([&] { return !reads.back()->ends.empty(); }));
      world->On([&] { pair.b.channel.reset(); });
    }
    ASSERT_TRUE(world->Until([&] { return destroyed; }));
    if (where != "closed") {
      ASSERT_TRUE(world->Until([&] { return !pair.b.closed.empty(); }));
    }
    for (const auto& read : reads) EXPECT_LE(read->ends.size(), 1u);
  }
}

INSTANTIATE_TEST_SUITE_P(All, LinkTest, testing::Range(std::size_t{0}, AllWorlds().size()),
                         [](const auto& test) { return AllWorlds()[test.param].name; });

}  // namespace
}  // namespace penstock::transfer
