// SPDX-License-Identifier: Apache-2.0
#include "transfer/collectives.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <future>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"

namespace penstock::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::byte ByteOf(std::int32_t rank, int gather, std::size_t i) {
  return static_cast<std::byte>(static_cast<std::size_t>(rank * 31 + gather * 7) + i);
}

constexpr std::size_t kMost = 3000;
// Outlive all ranks: peers may still read the last one.
struct Places {
  std::vector<std::byte> of[2];
};

// One rank: gathers of random sizes, the same for all, in two places by turns. The number of wrong
// bytes.
int GatherAll(Collectives& end, std::uint32_t seed, int gathers, Places& places) {
  const auto device = *CpuDevice::Make({.threads = 1});
  const std::unique_ptr<Stream> stream = device->NewStream();
  for (auto& place : places.of) place.resize(static_cast<std::size_t>(end.ranks()) * kMost);
  std::mt19937 random(seed);
  int wrong = 0;
  for (int gather = 0; gather < gathers; ++gather) {
    const std::size_t bytes = random() % kMost + 1;
    std::byte* const all = places.of[gather % 2].data();
    for (std::size_t i = 0; i < bytes; ++i) {
      all[static_cast<std::size_t>(end.rank()) * bytes + i] = ByteOf(end.rank(), gather, i);
    }
    if (!end.AllGather(*stream, all, bytes).ok()) return -1;
    for (std::int32_t r = 0; r < end.ranks(); ++r) {
      for (std::size_t i = 0; i < bytes; ++i) {
        wrong += all[static_cast<std::size_t>(r) * bytes + i] != ByteOf(r, gather, i);
      }
    }
  }
  return wrong;
}

TEST(LocalCollectivesTest, EveryRankGetsAllParts) {
  for (const std::int32_t ranks : {1, 2, 3, 8}) {
    SCOPED_TRACE(absl::StrCat("ranks=", ranks));
    const auto ends = MakeLocalCollectives(ranks, seconds(60));
    std::vector<int> wrong(ends.size(), -1);
    std::vector<Places> places(ends.size());
    {
      std::vector<std::jthread> threads;
      for (std::size_t r = 0; r < ends.size(); ++r) {
        threads.emplace_back([&, r] { wrong[r] = GatherAll(*ends[r], 5, 300, places[r]); });
      }
    }
    EXPECT_EQ(wrong, std::vector<int>(ends.size(), 0));
  }
}

// A rank that waits in its first gather, of `all` parts of 8 bytes.
std::future<absl::Status> Waiting(Collectives& end, std::vector<std::byte>& all) {
  all.resize(static_cast<std::size_t>(end.ranks()) * 8);
  return std::async(std::launch::async, [&end, &all] {
    const auto device = *CpuDevice::Make({.threads = 1});
    return end.AllGather(*device->NewStream(), all.data(), 8);
  });
}

TEST(LocalCollectivesTest, ARankThatDoesNotComeFailsTheOthersByTheDeadline) {
  const auto ends = MakeLocalCollectives(3, milliseconds(20));
  std::vector<std::byte> all[3];
  auto first = Waiting(*ends[0], all[0]);
  auto last = Waiting(*ends[2], all[2]);
  for (auto* waiting : {&first, &last}) {
    const absl::Status status = waiting->get();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
    EXPECT_NE(status.message().find("rank 1 of 3 did not come to gather 1 within 20 ms"),
              absl::string_view::npos)
        << status;
  }
  // Too late: nobody is there any more.
  EXPECT_EQ(Waiting(*ends[1], all[1]).get().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(LocalCollectivesTest, ARankThatGivesUpFailsTheOthersAtOnce) {
  const auto ends = MakeLocalCollectives(3, std::chrono::hours(1));
  std::vector<std::byte> all[3];
  auto first = Waiting(*ends[0], all[0]);
  auto second = Waiting(*ends[1], all[1]);
  ends[2]->Abort(absl::InternalError("its GPU fell off the bus"));
  for (auto* waiting : {&first, &second}) {
    const absl::Status status = waiting->get();
    EXPECT_EQ(status, absl::AbortedError("rank 2 gave up: its GPU fell off the bus"));
  }
  // The first reason stays.
  ends[0]->Abort(absl::InternalError("another"));
  EXPECT_EQ(Waiting(*ends[2], all[2]).get(),
            absl::AbortedError("rank 2 gave up: its GPU fell off the bus"));
}

class FailedStream final : public Stream {
 public:
  std::unique_ptr<Event> Record() override { return nullptr; }
  void WaitFor(const Event&) override {}
  absl::Status Synchronize() override { return absl::InternalError("out of order"); }
  void Copy(std::byte*, const std::byte*, std::size_t) override {}
};

TEST(LocalCollectivesTest, ADeviceThatFailsFailsTheOthersAtOnce) {
  const auto ends = MakeLocalCollectives(2, std::chrono::hours(1));
  std::vector<std::byte> all[2];
  auto waiting = Waiting(*ends[0], all[0]);
  FailedStream stream;
  std::byte bytes[16];
  EXPECT_EQ(ends[1]->AllGather(stream, bytes, 8), absl::InternalError("out of order"));
  EXPECT_EQ(waiting.get(), absl::AbortedError("rank 1 failed: out of order"));
}

}  // namespace
}  // namespace penstock::transfer
