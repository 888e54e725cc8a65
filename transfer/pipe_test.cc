// SPDX-License-Identifier: Apache-2.0
#include "transfer/pipe.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
#include "device/device_testing.h"

namespace penstock::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;

constexpr std::size_t kMost = 3000;

std::byte ByteOf(int portion, std::size_t i) {
  return static_cast<std::byte>(static_cast<std::size_t>(portion) * 7 + i);
}

TEST(LocalPipeTest, EveryPortionComesInOrder) {
  for (std::uint32_t seed = 1; seed <= 5; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    const auto pipe = MakeLocalPipe(0, minutes(1));
    int wrong = 0;
    std::jthread receiver([&] {
      const auto device = *CpuDevice::Make({.threads = 1});
      const auto stream = device->NewStream();
      std::mt19937 random(seed);
      std::vector<std::byte> rows(kMost);
      for (int portion = 0; portion < 300; ++portion) {
        const std::size_t bytes = random() % kMost + 1;
        if (!pipe->Receive(*stream, rows.data(), bytes).ok()) wrong = -1;
        for (std::size_t i = 0; i < bytes; ++i) wrong += rows[i] != ByteOf(portion, i);
      }
    });
    const auto device = *CpuDevice::Make({.threads = 1});
    const auto stream = device->NewStream();
    std::mt19937 random(seed);
    std::vector<std::byte> rows(kMost);  // Written again as soon as it was sent.
    for (int portion = 0; portion < 300; ++portion) {
      const std::size_t bytes = random() % kMost + 1;
      for (std::size_t i = 0; i < bytes; ++i) rows[i] = ByteOf(portion, i);
      ASSERT_TRUE(pipe->Send(*stream, rows.data(), bytes).ok());
    }
    receiver.join();
    EXPECT_EQ(wrong, 0);
  }
}

// Where work waits, a copy is made behind what it copies, and before what overwrites that.
TEST(LocalPipeTest, StreamsWaitForOneAnother) {
  FarDevice device;
  const auto pipe = MakeLocalPipe(0, minutes(1));
  const auto first = device.NewStream(), second = device.NewStream();
  const std::byte one{1}, two{2};
  std::byte sent{}, got{};
  std::jthread receiver([&] { EXPECT_TRUE(pipe->Receive(*second, &got, 1).ok()); });
  first->Copy(&sent, &one, 1);
  EXPECT_TRUE(pipe->Send(*first, &sent, 1).ok());
  first->Copy(&sent, &two, 1);
  receiver.join();
  EXPECT_EQ(sent, std::byte{}) << "nobody has waited yet";
  EXPECT_TRUE(first->Synchronize().ok());
  EXPECT_EQ(sent, two);
  EXPECT_EQ(got, one);
}

TEST(LocalPipeTest, AStageThatDoesNotComeFailsTheOtherByTheDeadline) {
  const auto device = *CpuDevice::Make({.threads = 1});
  const auto stream = device->NewStream();
  std::byte row{};
  const auto up = MakeLocalPipe(3, milliseconds(20));
  const absl::Status sent = up->Send(*stream, &row, 1);
  EXPECT_EQ(sent, absl::DeadlineExceededError("stage 4 took nothing from stage 3 for 20 ms"));
  // Too late: nobody is there any more.
  EXPECT_EQ(up->Receive(*stream, &row, 1), sent);
  EXPECT_EQ(up->Send(*stream, &row, 1), sent);
  const auto down = MakeLocalPipe(3, milliseconds(20));
  const absl::Status received = down->Receive(*stream, &row, 1);
  EXPECT_EQ(received, absl::DeadlineExceededError("stage 3 sent nothing to stage 4 for 20 ms"));
  EXPECT_EQ(down->Send(*stream, &row, 1), received);
}

}  // namespace
}  // namespace penstock::transfer
