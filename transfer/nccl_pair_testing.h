// SPDX-License-Identifier: Apache-2.0
// Channels over links of kind nccl between two GPUs of a NcclWorld, for its tests.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "kernels/crc32c.h"
#include "transfer/channel.h"
#include "transfer/nccl_testing.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {

inline std::vector<std::byte> RandomBytes(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// A segment of one GPU's memory, registered in a table.
struct DeviceSegment {
  DeviceSegment(NcclWorld& world, std::size_t gpu, std::size_t n, std::uint32_t seed)
      : bytes(RandomBytes(n, seed)), memory(world.OnDevice(gpu, bytes)) {
    world.On([&] { id = table.Register(*memory); });
  }
  std::vector<std::byte> bytes;
  std::unique_ptr<DeviceMemory> memory;
  SegmentTable table;
  SegmentId id{};
};

// Reads `count` units of `unit_bytes` in two runs each, from the segment into the other GPU's
// memory.
struct DeviceRead {
  DeviceRead(NcclWorld& world, std::size_t reader, const DeviceSegment& segment, std::size_t count,
             std::uint32_t unit_bytes)
      : segment_id(segment.id),
        target(world.OnDevice(reader, std::vector<std::byte>(count * unit_bytes, std::byte{0xEE}))),
        runs{{0, unit_bytes / 2, unit_bytes - unit_bytes / 2},
             {unit_bytes - unit_bytes / 2, 0, unit_bytes / 2}} {
    for (std::size_t u = 0; u < count; ++u) {
      const std::byte* const from = segment.bytes.data() + u * unit_bytes;
      units.push_back(
          {.from = u * unit_bytes, .to = target->data() + u * unit_bytes, .runs = runs});
      crcs.push_back(kernels::Crc32c(0, from, unit_bytes));
      want.insert(want.end(), from + runs[1].from, from + unit_bytes);
      want.insert(want.end(), from, from + runs[0].bytes);
    }
  }
  void Begin(Channel& channel, MonoTime deadline) {
    id = channel.Read({.segment = segment_id, .units = units, .crcs = crcs, .deadline = deadline},
                      [this](const absl::Status& status) { ends.push_back(status); });
  }
  bool ended() const { return !ends.empty(); }

  SegmentId segment_id;
  std::unique_ptr<DeviceMemory> target;
  std::vector<ByteRun> runs;
  std::vector<Unit> units;
  std::vector<std::uint32_t> crcs;
  std::vector<std::byte> want;
  ReadId id{};
  std::vector<absl::Status> ends;
};

// Two channels, started; a is on GPU 0, and rank 0.
struct NcclPair {
  explicit NcclPair(NcclWorld& w, std::size_t bytes = std::size_t{4} << 20)
      : world(w), a(w, 0, bytes, 1), b(w, 1, bytes, 2) {
    world.On([&] {
      auto [first, second] = world.Connect(a.table, b.table);
      to_b = std::make_unique<Channel>(world.loop(), Peer{"b", 1}, std::move(first));
      to_a = std::make_unique<Channel>(world.loop(), Peer{"a", 1}, std::move(second));
      for (Channel* channel : {to_a.get(), to_b.get()}) {
        channel->Start({.on_message = [this](auto) { ++messages; },
                        .on_closed = [this](auto& status) { closed.push_back(status); }});
      }
    });
  }
  ~NcclPair() {
    world.On([&] {
      to_a.reset();
      to_b.reset();
    });
  }
  // Both ways at once; until both have ended.
  void ReadBoth(DeviceRead& at_a, DeviceRead& at_b) {
    world.On([&] {
      at_a.Begin(*to_b, world.loop().Now() + std::chrono::seconds(25));
      at_b.Begin(*to_a, world.loop().Now() + std::chrono::seconds(25));
    });
    ASSERT_TRUE(world.Until([&] { return at_a.ended() && at_b.ended(); }));
  }
  // One that must go well, over GPU 1's bytes.
  void ExpectReads(std::size_t count = 3) {
    DeviceRead read(world, 0, b, count, 100000);
    world.On([&] { read.Begin(*to_b, world.loop().Now() + std::chrono::seconds(25)); });
    ASSERT_TRUE(world.Until([&] { return read.ended(); }));
    EXPECT_TRUE(read.ends[0].ok()) << read.ends[0];
    EXPECT_EQ(world.Bytes(0, *read.target), read.want);
  }
  // One that ends with the code and a text that has `part`.
  void ExpectFails(absl::StatusCode code, const std::string& part) {
    DeviceRead read(world, 0, b, 3, 100000);
    world.On([&] { read.Begin(*to_b, world.loop().Now() + std::chrono::seconds(25)); });
    ASSERT_TRUE(world.Until([&] { return read.ended(); }));
    EXPECT_EQ(read.ends[0].code(), code) << read.ends[0];
    EXPECT_NE(read.ends[0].message().find(part), absl::string_view::npos) << read.ends[0];
    EXPECT_EQ(world.Bytes(0, *read.target),
              std::vector<std::byte>(read.want.size(), std::byte{0xEE}));
  }

  NcclWorld& world;
  DeviceSegment a, b;
  std::unique_ptr<Channel> to_a, to_b;
  int messages = 0;
  std::vector<absl::Status> closed;
};

}  // namespace penstock::transfer
