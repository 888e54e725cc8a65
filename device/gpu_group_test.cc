// SPDX-License-Identifier: Apache-2.0
// Over the stand-in for cudart.
#include "device/gpu_group.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "device/cuda_runtime_table.h"
#include "device/cuda_standin.h"

namespace penstock {
namespace {

using cuda_standin::Machine;
using std::chrono::milliseconds;
using std::chrono::minutes;

constexpr Duration kLong = minutes(2);  // What takes so long has failed.
const CudaPlugin kPlugin = {.version = kCudaPluginVersion,
                            .plugin_bytes = sizeof(CudaPlugin),
                            .runtime = kCudaRuntime,
                            .kernels = nullptr,
                            .nccl = nullptr};
const absl::Status kExchange = absl::UnavailableError("nccl: GPU cuda:0: gathering: an error (6)");

// What OnGpuFailed was told; one at a time tells.
std::vector<std::string>& Told() {
  static std::vector<std::string> told;
  return told;
}
void Note(const std::string& text) {
  Told().push_back(text);
  cuda_standin::Change({.devices = 3});  // Calls that hang return.
}

class GpuGroupTest : public testing::Test {
 protected:
  void SetUp() override {
    Told().clear();
    cuda_standin::Reset({.devices = 3});
    for (int gpu = 0; gpu < 3; ++gpu) {
      devices_.push_back(CudaDevice::Make(kPlugin, {.threads = 1}, gpu, Note).value());
      gpus_.push_back(devices_.back().get());
    }
  }
  void Make(Duration patience) {
    group_.reset();  // It takes leave of the devices.
    group_ = std::make_unique<GpuGroup>(gpus_, Note, patience);
  }
  // What was told, of which there is one.
  static std::string Text() {
    EXPECT_EQ(Told().size(), 1u);
    return Told().empty() ? "nothing" : Told()[0];
  }
  static void Lose(int gpu, int error) {
    cuda_standin::Change({.devices = 3, .synchronizes = 0, .lost_error = error, .lost_gpu = gpu});
  }

  std::vector<std::unique_ptr<CudaDevice>> devices_;
  std::vector<CudaDevice*> gpus_;
  std::unique_ptr<GpuGroup> group_;
};

constexpr char kLost[] =
    "GPU cuda:1 (stand-in 1, PCI 0000:01:00.0) was lost while %s: cudaErrorECCUncorrectable "
    "(214): its memory has";

std::string Lost(const std::string& doing) {
  std::string text = kLost;
  return text.replace(text.find("%s"), 2, doing);
}

TEST_F(GpuGroupTest, TheLostOneIsNamedWhoeverHearsFirst) {
  struct Case {
    const char* name;
    std::function<void(GpuGroup&, CudaDevice& healthy, CudaDevice& lost)> hear;
    const char* doing;
  };
  const auto touch = [](CudaDevice& healthy, CudaDevice& lost, bool event) {
    const std::unique_ptr<DeviceMemory> own = healthy.Allocate(8).value();
    const std::unique_ptr<DeviceMemory> other = lost.Allocate(8).value();
    const std::unique_ptr<Stream> stream = healthy.NewStream(), writer = lost.NewStream();
    const std::unique_ptr<Event> written = writer->Record();
    Lose(1, 214);
    event ? stream->WaitFor(*written) : stream->Copy(own->data(), other->data(), 8);
    EXPECT_FALSE(stream->Synchronize().ok());
  };
  const Case cases[] = {
      {"itself",
       [](GpuGroup&, CudaDevice&, CudaDevice& lost) {
         const std::unique_ptr<Stream> stream = lost.NewStream();
         Lose(1, 214);
         EXPECT_FALSE(stream->Synchronize().ok());
       },
       "computing"},
      {"who copies its memory",
       [&](GpuGroup&, CudaDevice& healthy, CudaDevice& lost) { touch(healthy, lost, false); },
       "computing with others"},
      {"who waits for its event",
       [&](GpuGroup&, CudaDevice& healthy, CudaDevice& lost) { touch(healthy, lost, true); },
       "computing with others"},
      {"an exchange",
       [](GpuGroup& group, CudaDevice&, CudaDevice&) {
         Lose(1, 214);
         group.ExchangeFailed(kExchange);
       },
       "computing with others"},
      {"an exchange, before CUDA knows",
       [](GpuGroup& group, CudaDevice&, CudaDevice&) {
         const std::jthread other([&] { group.ExchangeFailed(kExchange); });
         Lose(1, 214);
       },
       "computing with others"}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Told().clear();
    Make(kLong);
    c.hear(*group_, *devices_[0], *devices_[1]);
    EXPECT_TRUE(Text().starts_with(Lost(c.doing))) << Text();
    EXPECT_EQ(Text().find("cuda:0"), std::string::npos) << Text();
  }
}

TEST_F(GpuGroupTest, OneSpeaksForAllThatHear) {
  Make(kLong);
  Lose(1, 214);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        i % 2 == 0 ? group_->ExchangeFailed(kExchange) : devices_[1]->Lost("copying", 214);
      });
    }
  }
  EXPECT_EQ(Text().find("GPU cuda:1 (stand-in 1, PCI 0000:01:00.0) was lost while co"), 0u)
      << Text();
}

TEST_F(GpuGroupTest, AllThatAreLostAreNamed) {
  Make(kLong);
  Lose(-1, 719);
  devices_[2]->Lost("computing", 719);
  EXPECT_TRUE(
      Text().starts_with("GPU cuda:0 (stand-in 0, PCI 0000:00:00.0) was lost while "
                         "computing with others: cudaErrorLaunchFailure (719): "))
      << Text();
  EXPECT_TRUE(Text().ends_with(
      "; so was GPU cuda:1 (stand-in 1, PCI 0000:01:00.0): cudaErrorLaunchFailure (719)"
      "; so was GPU cuda:2 (stand-in 2, PCI 0000:02:00.0): cudaErrorLaunchFailure (719)"))
      << Text();
}

TEST_F(GpuGroupTest, WhatNobodyKnowsIsSaidSo) {
  Make(milliseconds(30));
  group_->ExchangeFailed(kExchange);
  group_->ExchangeFailed(absl::AbortedError("later"));
  EXPECT_TRUE(Text().starts_with(
      "GPU cuda:0 (stand-in 0, PCI 0000:00:00.0) and GPU cuda:1 (stand-in 1, PCI 0000:01:00.0) "
      "and GPU cuda:2 (stand-in 2, PCI 0000:02:00.0) cannot go on together, and none says that it "
      "was lost: nccl: GPU cuda:0: gathering: an error (6): `nvidia-smi -q`"))
      << Text();
}

TEST_F(GpuGroupTest, WithoutAnotherErrorAGpusOwnStands) {
  Make(milliseconds(30));
  devices_[0]->Lost("copying", 700);  // And it is well when it is asked.
  EXPECT_TRUE(
      Text().starts_with("GPU cuda:0 (stand-in 0, PCI 0000:00:00.0) was lost while "
                         "copying: cudaErrorIllegalAddress (700): "))
      << Text();
}

TEST_F(GpuGroupTest, OneThatDoesNotAnswerIsNamed) {
  Make(milliseconds(30));
  cuda_standin::Change({.devices = 3, .hung_gpu = 2});
  group_->ExchangeFailed(kExchange);
  EXPECT_TRUE(
      Text().starts_with("GPU cuda:2 (stand-in 2, PCI 0000:02:00.0) was lost: no call for "
                         "it has returned for 30 ms: `nvidia-smi -q`"))
      << Text();
}

TEST_F(GpuGroupTest, OneThatDoesNotAnswerHidesNoOther) {
  Make(milliseconds(500));
  cuda_standin::Change(
      {.devices = 3, .synchronizes = 0, .lost_error = 214, .lost_gpu = 1, .hung_gpu = 2});
  group_->ExchangeFailed(kExchange);
  EXPECT_TRUE(Text().starts_with(Lost("computing with others"))) << Text();
}

TEST_F(GpuGroupTest, AFullGpuIsSaidAtOnce) {
  Make(kLong);
  devices_[2]->MustHave(absl::OkStatus());
  devices_[2]->Lost("pinning memory", kCudaOutOfMemory);
  EXPECT_TRUE(
      Text().starts_with("GPU cuda:2 (stand-in 2, PCI 0000:02:00.0) lacks memory for a "
                         "step: pinning memory: cudaErrorMemoryAllocation (2)"))
      << Text();
}

TEST_F(GpuGroupTest, WhereNobodyIsToldNobodyWaits) {
  group_ = std::make_unique<GpuGroup>(gpus_, nullptr, kLong);
  group_->ExchangeFailed(kExchange);
  devices_[0]->Lost("copying", 700);
  EXPECT_TRUE(Told().empty());
  group_.reset();  // Its devices tell by themselves again.
  devices_[0]->Lost("copying", 700);
  EXPECT_EQ(Told().size(), 1u);
}

}  // namespace
}  // namespace penstock
