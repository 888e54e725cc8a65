// SPDX-License-Identifier: Apache-2.0
#include "device/staged_copies.h"

#include <algorithm>
#include <random>
#include <span>

#include "base/seed_testing.h"
#include "device/device_testing.h"
#include "gtest/gtest.h"

namespace penstock {
namespace {

using Way = StagedCopies::Way;

std::vector<std::byte> RandomBytes(std::mt19937& rng, std::size_t count) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng());
  return bytes;
}

// Pieces of random sizes, there and back, through stages that are smaller than most of them.
TEST(StagedCopiesTest, BytesComeThereAndBack) {
  for (std::uint32_t seed = 0; seed < 50; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 rng(seed);
    FarDevice device;
    const std::size_t size = 1 + rng() % 3000;
    const std::unique_ptr<DeviceMemory> far = device.Allocate(size).value();
    const auto copies = StagedCopies::Make(device, 1 + rng() % 700).value();
    const std::vector<std::byte> want = RandomBytes(rng, size);
    std::vector<std::byte> got(size);
    std::vector<StagedCopies::Run> there, back;
    for (std::size_t begin = 0; begin < size;) {
      const std::size_t bytes = std::min<std::size_t>(rng() % 500, size - begin);
      there.push_back({far->data() + begin, want.data() + begin, bytes});
      back.push_back({got.data() + begin, far->data() + begin, bytes});
      begin += bytes;
    }
    std::ranges::shuffle(there, rng);
    std::ranges::shuffle(back, rng);
    int told = 0;
    copies->Post(Way::kToDevice, there, nullptr, [&] { EXPECT_EQ(++told, 1); });
    const std::uint64_t last = copies->Post(Way::kToHost, back, nullptr, [&] {
      EXPECT_EQ(++told, 2);
      EXPECT_EQ(got, want);
    });
    copies->Wait(last);
    EXPECT_TRUE(copies->Copied(last));
    EXPECT_EQ(told, 2);
    EXPECT_EQ(got, want);
  }
}

TEST(StagedCopiesTest, CopiesWaitForTheDevice) {
  FarDevice device;
  const std::unique_ptr<DeviceMemory> far = device.Allocate(1000).value();
  const std::unique_ptr<Stream> work = device.NewStream();
  const auto copies = StagedCopies::Make(device, 100).value();
  std::mt19937 rng(7);
  const std::vector<std::byte> want = RandomBytes(rng, 1000);
  const std::vector<std::byte> later = RandomBytes(rng, 1000);
  std::vector<std::byte> got(1000);
  work->Copy(far->data(), want.data(), 1000);
  std::unique_ptr<Event> written = work->Record();
  work->Copy(far->data(), later.data(), 1000);
  copies->Wait(
      copies->Post(Way::kToHost, {{got.data(), far->data(), 1000}}, std::move(written), nullptr));
  EXPECT_EQ(got, want);  // Neither what was there before, nor what came after the event.
}

// Each finds its runs there, and no other batch meanwhile; what it puts into the stream is done, too.
TEST(StagedCopiesTest, WorkFollowsItsRuns) {
  FarDevice device;
  const std::unique_ptr<DeviceMemory> room = device.Allocate(1000).value();
  const std::unique_ptr<DeviceMemory> far = device.Allocate(20000).value();
  const auto copies = StagedCopies::Make(device, 300).value();
  std::mt19937 rng(8);
  std::vector<std::vector<std::byte>> want;
  std::uint64_t last = 0;
  int told = 0;
  for (int i = 0; i < 20; ++i) want.push_back(RandomBytes(rng, 1000));
  for (int i = 0; i < 20; ++i) {
    const std::vector<std::byte>& bytes = want[static_cast<std::size_t>(i)];
    std::byte* const to = far->data() + std::size_t{1000} * static_cast<std::size_t>(i);
    last = copies->Post(
        {{room->data(), bytes.data(), 400}, {room->data() + 400, bytes.data() + 400, 600}},
        [&, to](Stream& stream) {
          EXPECT_TRUE(std::ranges::equal(std::span(room->data(), 1000), bytes));
          stream.Copy(to, room->data(), 1000);
        },
        [&, i, to] {
          EXPECT_EQ(told++, i);
          EXPECT_TRUE(std::ranges::equal(std::span(to, 1000), bytes));
        });
  }
  copies->Wait(last);
  EXPECT_EQ(told, 20);
}

}  // namespace
}  // namespace penstock
