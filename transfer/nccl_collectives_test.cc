// SPDX-License-Identifier: Apache-2.0
// Over the stand-ins for cudart and NCCL.
#include "transfer/nccl_collectives.h"

#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cuda_device.h"
#include "device/cuda_runtime_table.h"
#include "device/cuda_standin.h"
#include "device/nccl_standin.h"
#include "device/nccl_table.h"
#include "device/planted_faults_testing.h"

namespace penstock::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;

CudaPlugin MakePlugin(const NcclLibrary* (*nccl)()) {
  return {.version = kCudaPluginVersion,
          .plugin_bytes = sizeof(CudaPlugin),
          .runtime = kCudaRuntime,
          .kernels = nullptr,
          .nccl = nccl};
}
const CudaPlugin kPlugin = MakePlugin(LoadNccl);

// What OnGpuFailed was told.
std::vector<std::string>& Told() {
  static std::vector<std::string> told;
  return told;
}

class NcclCollectivesTest : public testing::Test {
 protected:
  static constexpr std::size_t kMost = 3000;

  // A GPU with two places for all parts.
  struct Rank {
    explicit Rank(int gpu)
        : device(CudaDevice::Make(kPlugin, {.threads = 1}, gpu, [](const std::string& text) {
                   Told().push_back(text);
                 }).value()) {}
    std::unique_ptr<CudaDevice> device;
    std::unique_ptr<Stream> stream = device->NewStream();
    std::unique_ptr<DeviceMemory> places = device->Allocate(2 * 8 * kMost).value();
    std::byte* place(int gather) { return places->data() + (gather % 2 != 0 ? 8 * kMost : 0); }
  };
  absl::Status Make(std::size_t ranks, Duration patience) {
    MakeRanks(std::vector<int>(ranks));
    return Join(patience);
  }
  void MakeRanks(const std::vector<int>& gpus) {
    ends_.clear();
    ranks_.clear();
    Told().clear();
    for (const int gpu : gpus) ranks_.emplace_back(gpu);
  }
  absl::Status Join(Duration patience) {
    std::vector<Device*> devices;
    for (Rank& rank : ranks_) devices.push_back(rank.device.get());
    auto made = MakeNcclCollectives(devices, patience);
    if (made.ok()) ends_ = *std::move(made);
    return made.status();
  }
  absl::Status Gather(std::size_t r, int gather, std::size_t bytes) {
    return ends_[r]->AllGather(*ranks_[r].stream, ranks_[r].place(gather), bytes);
  }
  absl::Status Finish(std::size_t r) { return ends_[r]->Finish(*ranks_[r].stream); }
  void TearDown() override {
    nccl_standin::Set({});
    cuda_standin::Change({});
    ends_.clear();
    EXPECT_EQ(nccl_standin::Now().comms, 0);
    EXPECT_EQ(nccl_standin::Now().misuses, misuses_) << nccl_standin::Now().last_fault;
  }

  std::deque<Rank> ranks_;
  std::vector<std::unique_ptr<Collectives>> ends_;  // Before the streams that they may hold.
  std::int64_t misuses_ = nccl_standin::Now().misuses;
};

std::byte ByteOf(std::size_t rank, int gather, std::size_t i) {
  return static_cast<std::byte>(rank * 31 + static_cast<std::size_t>(gather) * 7 + i);
}

TEST_F(NcclCollectivesTest, EveryRankGetsAllParts) {
  for (const std::size_t ranks : {std::size_t{2}, std::size_t{3}, std::size_t{8}}) {
    SCOPED_TRACE(absl::StrCat("ranks=", ranks));
    ASSERT_TRUE(Make(ranks, minutes(1)).ok());
    EXPECT_EQ(ends_.size(), ranks);
    std::vector<int> wrong(ranks, -1);
    const auto gather_all = [&](std::size_t r) {
      std::mt19937 random(5);
      int bad = 0;
      for (int gather = 0; gather < 30; ++gather) {
        const std::size_t bytes = random() % kMost + 1;
        std::vector<std::byte> own(bytes), got(ranks * bytes);
        for (std::size_t i = 0; i < bytes; ++i) own[i] = ByteOf(r, gather, i);
        Rank& rank = ranks_[r];
        rank.stream->Copy(rank.place(gather) + r * bytes, own.data(), bytes);
        if (!Gather(r, gather, bytes).ok()) return -1;
        rank.stream->Copy(got.data(), rank.place(gather), got.size());
        if (gather % 7 == 0 && !Finish(r).ok()) return -1;
        if (!rank.stream->Synchronize().ok()) return -1;
        for (std::size_t i = 0; i < got.size(); ++i) {
          bad += got[i] != ByteOf(i / bytes, gather, i % bytes);
        }
      }
      return bad;
    };
    {
      std::vector<std::jthread> threads;
      for (std::size_t r = 0; r < ranks; ++r) {
        EXPECT_EQ(ends_[r]->rank(), static_cast<std::int32_t>(r));
        EXPECT_EQ(ends_[r]->ranks(), static_cast<std::int32_t>(ranks));
        threads.emplace_back([&, r] { wrong[r] = gather_all(r); });
      }
    }
    EXPECT_EQ(wrong, std::vector<int>(ranks, 0));
  }
}

// One thread for both: no gather waits for the other rank's.
TEST_F(NcclCollectivesTest, NobodyWaitsForAPeerButInFinish) {
  ASSERT_TRUE(Make(2, minutes(1)).ok());
  for (int gather = 0; gather < 3; ++gather) ASSERT_TRUE(Gather(0, gather, 100).ok());
  for (int gather = 0; gather < 3; ++gather) ASSERT_TRUE(Gather(1, gather, 100).ok());
  EXPECT_TRUE(Finish(0).ok());
  EXPECT_TRUE(Finish(1).ok());
}

TEST_F(NcclCollectivesTest, ARankThatDoesNotComeFailsTheOthersByTheDeadline) {
  ASSERT_TRUE(Make(3, milliseconds(200)).ok());
  ASSERT_TRUE(Gather(0, 0, 8).ok());
  ASSERT_TRUE(Gather(2, 0, 8).ok());
  ASSERT_TRUE(Gather(2, 1, 8).ok());
  const absl::Status late = Finish(2);
  EXPECT_EQ(late, absl::DeadlineExceededError(
                      "rank 1 of 3, GPU cuda:0 (stand-in 0, PCI 0000:00:00.0), did not come to "
                      "gather 1 within 200 ms of rank 2"));
  EXPECT_EQ(Finish(0), late);
  // Too late: nobody is there any more.
  EXPECT_EQ(Gather(1, 0, 8), late);
}

TEST_F(NcclCollectivesTest, ARankThatGivesUpFailsTheOthersAtOnce) {
  ASSERT_TRUE(Make(2, std::chrono::hours(1)).ok());
  ASSERT_TRUE(Gather(0, 0, 8).ok());
  std::jthread other([&] { ends_[1]->Abort(absl::InternalError("its GPU fell off the bus")); });
  EXPECT_EQ(Finish(0), absl::AbortedError("rank 1 gave up: its GPU fell off the bus"));
  EXPECT_EQ(Gather(1, 0, 8), absl::AbortedError("rank 1 gave up: its GPU fell off the bus"));
}

TEST_F(NcclCollectivesTest, AnErrorOfNcclNamesTheGpuThatGotIt) {
  MakeRanks({0, 1});
  ASSERT_TRUE(Join(minutes(1)).ok());
  ASSERT_TRUE(Gather(0, 0, 8).ok());
  const cuda_standin::PlantedFaults faults;
  faults.Plant("nccl0", 6);
  const absl::Status failed = Finish(0);
  EXPECT_EQ(failed, absl::UnavailableError(
                        "nccl: GPU cuda:0 (stand-in 0, PCI 0000:00:00.0): gathering: remote "
                        "process exited or there was a network error (6)"));
  EXPECT_EQ(Gather(1, 0, 8), failed) << "and who it does not concern says the same";
  EXPECT_TRUE(Told().empty()) << Told()[0];
}

TEST_F(NcclCollectivesTest, ALostGpuIsToldOfFirst) {
  MakeRanks({0, 1});
  ASSERT_TRUE(Join(minutes(1)).ok());
  cuda_standin::Change({.synchronizes = 0, .lost_error = 214, .lost_gpu = 1});
  EXPECT_EQ(Gather(1, 0, 8).code(), absl::StatusCode::kUnavailable);
  ASSERT_FALSE(Told().empty());
  EXPECT_TRUE(
      Told()[0].starts_with("GPU cuda:1 (stand-in 1, PCI 0000:01:00.0) was lost while making an "
                            "event: cudaErrorECCUncorrectable (214): "))
      << Told()[0];
}

TEST_F(NcclCollectivesTest, WhatNcclSaysIsHandedOn) {
  nccl_standin::Set({.init_error = 2});
  EXPECT_EQ(Make(2, minutes(1)).message(),
            "nccl: GPU cuda:0 (stand-in 0, PCI 0000:00:00.0): joining the GPUs: unhandled system "
            "error (2)");
  nccl_standin::Set({});
  const std::pair<const NcclLibrary* (*)(), const char*> cases[] = {
      {nullptr, "nccl: not of this plug-in"},
      {[]() -> const NcclLibrary* {
         static const NcclLibrary library = {.why_not = "no such library"};
         return &library;
       },
       "nccl: no such library"}};
  for (const auto& [nccl, want] : cases) {
    const CudaPlugin plugin = MakePlugin(nccl);
    const auto device = CudaDevice::Make(plugin, {.threads = 1}).value();
    Device* const devices[] = {device.get(), device.get()};
    const absl::Status none = MakeNcclCollectives(devices, minutes(1)).status();
    EXPECT_EQ(none, absl::UnavailableError(want));
  }
}

}  // namespace
}  // namespace penstock::transfer
