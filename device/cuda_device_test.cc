// SPDX-License-Identifier: Apache-2.0
// The GPU as a device, over the stand-in for cudart: no GPU is needed. Linked with the test
// plug-in, whose table of cudart functions it uses.
#include "device/cuda_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "device/cuda_standin.h"

namespace penstock {
namespace {

using cuda_standin::Machine;

const CudaPlugin& Plugin() { return *penstock_cuda_plugin(); }

class CudaDeviceTest : public testing::Test {
 protected:
  void SetUp() override { cuda_standin::Reset({}); }
  void TearDown() override {
    const cuda_standin::Counts counts = cuda_standin::Now();
    EXPECT_EQ(counts.device_bytes, 0);
    EXPECT_EQ(counts.pinned_bytes, 0);
    EXPECT_EQ(counts.streams, 0);
    EXPECT_EQ(counts.events, 0);
    EXPECT_EQ(counts.graphs, 0);
    cuda_standin::Reset({});
  }
  static std::unique_ptr<CudaDevice> Make() {
    return CudaDevice::Make(Plugin(), {.threads = 2}).value();
  }
};

TEST_F(CudaDeviceTest, SaysWhyThereIsNoGpu) {
  struct Case {
    const char* name;
    Machine machine;
    const char* want;
  };
  for (const Case& c : {
           Case{"no driver",
                {.driver_version = 0, .devices = 0},
                "no NVIDIA driver: cudaErrorInsufficientDriver (35)"},
           Case{"an old one",
                {.driver_version = 12040, .devices = 0},
                "the NVIDIA driver is for CUDA 12.4, the plug-in needs 13.0: install a newer "
                "driver; "
                "cudaErrorInsufficientDriver (35)"},
           Case{"a stub",
                {.device_count_error = 34, .devices = 0},
                "no NVIDIA driver: cudaError (34)"},
           Case{"no GPU",
                {.device_count_error = 100, .devices = 0},
                "the NVIDIA driver shows no GPU to this process"},
           Case{"none visible", {.devices = 0}, "the NVIDIA driver shows no GPU to this process"},
           Case{"driver trouble",
                {.device_count_error = 999},
                "CUDA does not start: cudaErrorUnknown (999)"},
           Case{"too old",
                {.compute_major = 7},
                "stand-in 0, compute 7.0, 1.0 GiB is too old: compute capability 8.0 is needed"},
       }) {
    SCOPED_TRACE(c.name);
    cuda_standin::Change(c.machine);
    const auto made = CudaDevice::Make(Plugin(), {.threads = 1});
    EXPECT_EQ(made.status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(made.status().message(), c.want);
  }
}

TEST_F(CudaDeviceTest, DescribesItself) {
  EXPECT_EQ(Make()->Describe(), "cuda: stand-in 0, compute 9.0, 1.0 GiB, 2 host threads");
  EXPECT_EQ(Make()->kind(), "cuda");
}

TEST_F(CudaDeviceTest, IsTheGpuOfItsNumber) {
  const auto device = CudaDevice::Make(Plugin(), {.threads = 1}, 1).value();
  EXPECT_EQ(device->Describe(), "cuda: stand-in 1, compute 9.0, 1.0 GiB, 1 host thread");
  EXPECT_EQ(device->gpu(), 1);
  const std::unique_ptr<DeviceMemory> memory = device->Allocate(100).value();
  const std::unique_ptr<Stream> stream = device->NewStream();
  std::vector<std::byte> seen(100, std::byte{1});
  // The stand-in refuses a stream or an event of a GPU that is not the thread's; all begin with 0.
  const auto work = [&] {
    const std::unique_ptr<Event> event = stream->Record();
    stream->WaitFor(*event);
    stream->Copy(seen.data(), memory->data(), 100);
    EXPECT_TRUE(stream->Synchronize().ok());
  };
  std::jthread(work).join();
  EXPECT_EQ(seen, std::vector<std::byte>(100));
  // As do two GPUs in one process.
  EXPECT_TRUE(Make()->NewStream()->Synchronize().ok());
  work();
  const auto none = CudaDevice::Make(Plugin(), {.threads = 1}, 2);
  EXPECT_EQ(none.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(none.status().message(),
            "there is no GPU 2: the NVIDIA driver shows this process 2, of which the first is 0");
}

TEST_F(CudaDeviceTest, MemoryIsZeroedAlignedAndNotTheHosts) {
  const std::unique_ptr<CudaDevice> device = Make();
  const std::unique_ptr<Stream> stream = device->NewStream();
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{5000}, std::size_t{3'000'000}}) {
    const std::unique_ptr<DeviceMemory> memory = device->Allocate(bytes).value();
    EXPECT_EQ(memory->size_bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->data()) % 4096, 0u);
    EXPECT_FALSE(memory->host_visible());
    EXPECT_EQ(memory->shared_fd(), -1);
    std::vector<std::byte> seen(bytes, std::byte{1});
    stream->Copy(seen.data(), memory->data(), bytes);
    ASSERT_TRUE(stream->Synchronize().ok());
    EXPECT_EQ(std::ranges::count(seen, std::byte{0}), static_cast<std::ptrdiff_t>(bytes));
    memory->Decommit(0, bytes);  // Keeps it.
    stream->Copy(memory->data(), seen.data(), bytes);
    EXPECT_TRUE(stream->Synchronize().ok());
  }
}

TEST_F(CudaDeviceTest, HostMemoryGoesThereAndBack) {
  const std::unique_ptr<CudaDevice> device = Make();
  const std::unique_ptr<Stream> stream = device->NewStream();
  const std::unique_ptr<DeviceMemory> there = device->Allocate(1000).value();
  const std::unique_ptr<DeviceMemory> host = device->AllocateHost(1000).value();
  EXPECT_TRUE(host->host_visible());
  EXPECT_EQ(std::count(host->data(), host->data() + 1000, std::byte{0}), 1000);
  for (std::size_t i = 0; i < 1000; ++i) host->data()[i] = static_cast<std::byte>(i * 7);
  stream->Copy(there->data(), host->data(), 1000);
  ASSERT_TRUE(stream->Synchronize().ok());
  std::vector<std::byte> seen(1000);
  stream->Copy(seen.data(), there->data(), 1000);
  stream->Copy(seen.data(), nullptr, 0);
  ASSERT_TRUE(stream->Synchronize().ok());
  EXPECT_TRUE(std::equal(seen.begin(), seen.end(), host->data()));
}

TEST_F(CudaDeviceTest, TheStandInSeesPinnedMemoryThatChangesTooEarly) {
  const std::unique_ptr<CudaDevice> device = Make();
  const std::unique_ptr<Stream> stream = device->NewStream();
  const std::unique_ptr<DeviceMemory> there = device->Allocate(64).value();
  const std::unique_ptr<DeviceMemory> host = device->AllocateHost(64).value();
  stream->Copy(there->data(), host->data(), 64);
  host->data()[63] = std::byte{1};
  EXPECT_FALSE(stream->Synchronize().ok());
}

TEST_F(CudaDeviceTest, TooMuchIsRefusedWithBothNumbers) {
  cuda_standin::Reset({.memory_bytes = 100'000});
  const std::unique_ptr<CudaDevice> device = Make();
  const std::unique_ptr<DeviceMemory> some = device->Allocate(50'000).value();
  const auto refused = device->Allocate(50'001);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.status().message(),
            "cannot allocate 50001 bytes on the GPU: 45728 of 100000 are free");
  // That leaves no error behind.
  EXPECT_TRUE(device->NewStream()->Synchronize().ok());
  EXPECT_TRUE(device->Allocate(1000).ok());
}

TEST_F(CudaDeviceTest, AGraphIsDoneWhenItIsLaunched) {
  const std::unique_ptr<CudaDevice> device = Make();
  CudaStream stream(device->plugin(), device->gpu());
  const std::unique_ptr<DeviceMemory> there = device->Allocate(64).value();
  const std::unique_ptr<DeviceMemory> host = device->AllocateHost(128).value();
  const auto graph = stream.Capture([&] {
    stream.Copy(there->data(), host->data(), 64);
    stream.Zero(there->data(), 8);
    stream.Copy(host->data() + 64, there->data(), 64);
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  const std::int64_t launches = cuda_standin::Now().graph_launches;
  for (int i = 1; i < 4; ++i) {
    std::fill_n(host->data(), 64, static_cast<std::byte>(i));
    EXPECT_EQ(host->data()[127], static_cast<std::byte>(i - 1));
    stream.Launch(**graph);
    ASSERT_TRUE(stream.Synchronize().ok());
    EXPECT_EQ(std::count(host->data() + 64, host->data() + 128, static_cast<std::byte>(i)), 56);
    EXPECT_EQ(cuda_standin::Now().graph_launches, launches + i);
  }
}

TEST_F(CudaDeviceTest, WhatCannotBeAGraphIsSaidAndTheStreamGoesOn) {
  const std::unique_ptr<CudaDevice> device = Make();
  CudaStream stream(device->plugin(), device->gpu());
  const absl::Status allocates =
      stream.Capture([&] { EXPECT_FALSE(device->AllocateHost(64).ok()); }).status();
  EXPECT_EQ(allocates.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(allocates.message(), "no CUDA graph: cudaErrorStreamCaptureInvalidated (901)");
  EXPECT_EQ(stream.Capture([&] { (void)stream.Record(); }).status().code(),
            absl::StatusCode::kUnavailable);
  cuda_standin::Change({.graphs = false});
  EXPECT_EQ(stream.Capture([] { FAIL(); }).status().message(),
            "no CUDA graph: cudaErrorStreamCaptureUnsupported (900)");
  EXPECT_TRUE(stream.Synchronize().ok());
}

TEST_F(CudaDeviceTest, EventsAreDoneAndStreamsWait) {
  const std::unique_ptr<CudaDevice> device = Make();
  const std::unique_ptr<Stream> one = device->NewStream(), two = device->NewStream();
  const std::unique_ptr<Event> event = one->Record();
  two->WaitFor(*event);
  EXPECT_TRUE(two->Synchronize().ok());
  EXPECT_TRUE(event->Done());
}

TEST_F(CudaDeviceTest, ALostGpuIsSaidByEverySynchronize) {
  const std::unique_ptr<CudaDevice> device = Make();
  {
    const std::unique_ptr<DeviceMemory> memory = device->Allocate(100).value();
    const std::unique_ptr<Stream> stream = device->NewStream();
    cuda_standin::Change({.synchronizes = 0});
    std::byte host[100];
    stream->Copy(host, memory->data(), 100);
    for (int i = 0; i < 2; ++i) {
      const absl::Status status = stream->Synchronize();
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      EXPECT_EQ(status.message(), "cuda: copying: cudaErrorLaunchFailure (719)");
    }
    EXPECT_TRUE(stream->Record()->Done());  // Nobody waits for ever.
    EXPECT_EQ(device->Allocate(1).status().code(), absl::StatusCode::kInternal);
    EXPECT_EQ(device->FreeBytes().status().message(),
              "cuda: asking for free memory: cudaErrorLaunchFailure (719)");
    // A stream that could not be made has failed from the start.
    EXPECT_EQ(device->NewStream()->Synchronize().message(),
              "cuda: making a stream: cudaErrorLaunchFailure (719)");
  }
  const auto made = CudaDevice::Make(Plugin(), {.threads = 1});
  EXPECT_EQ(made.status().code(), absl::StatusCode::kUnavailable);
}

// What OnGpuFailed was told.
std::vector<std::string>& Told() {
  static std::vector<std::string> told;
  return told;
}

TEST_F(CudaDeviceTest, WhoWantsToKnowHearsOfALostGpuAtOnce) {
  Told().clear();
  const OnGpuFailed note = [](const std::string& text) { Told().push_back(text); };
  const auto device = CudaDevice::Make(Plugin(), {.threads = 1}, 1, note).value();
  const auto healthy = CudaDevice::Make(Plugin(), {.threads = 1}, 0, note).value();
  {
    const std::unique_ptr<DeviceMemory> memory = device->Allocate(100).value();
    const std::unique_ptr<Stream> other = healthy->NewStream(), stream = device->NewStream();
    cuda_standin::Change({.synchronizes = 0, .lost_error = 214, .lost_gpu = 1});
    std::byte host[100];
    stream->Copy(host, memory->data(), 100);
    ASSERT_EQ(Told().size(), 1u);
    EXPECT_TRUE(
        Told()[0].starts_with("GPU cuda:1 (stand-in 1, PCI 0000:01:00.0) was lost while copying: "
                              "cudaErrorECCUncorrectable (214): "))
        << Told()[0];
    EXPECT_FALSE(stream->Synchronize().ok());
    EXPECT_EQ(Told().size(), 1u) << "once";
    EXPECT_FALSE(device->Allocate(1).ok());
    ASSERT_EQ(Told().size(), 2u);
    EXPECT_NE(Told()[1].find(" was lost while allocating: "), std::string::npos) << Told()[1];
    EXPECT_TRUE(other->Synchronize().ok());
    cuda_standin::Change({.synchronizes = 0, .lost_error = 2, .lost_gpu = 0});
    EXPECT_FALSE(other->Synchronize().ok());
    ASSERT_EQ(Told().size(), 3u);
    EXPECT_NE(Told()[2].find(" lacks memory for a step: computing: cudaErrorMemoryAllocation (2)"),
              std::string::npos)
        << Told()[2];
  }
  EXPECT_EQ(Told().size(), 3u);
}

TEST_F(CudaDeviceTest, AStepThatFindsNoMemoryTellsAndEnds) {
  const OnGpuFailed say = [](const std::string& text) {
    std::fprintf(stderr, "%s\n", text.c_str());
  };
  const auto device = CudaDevice::Make(Plugin(), {.threads = 1}, 0, say).value();  // It forks.
  device->MustHave(device->Allocate(100).status());
  const absl::Status none = device->Allocate(std::size_t{2} << 30).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_DEATH(device->MustHave(none),
               "GPU cuda:0 .stand-in 0, PCI 0000:00:00.0. lacks memory for a step: cannot allocate "
               "2147483648 bytes "
               "on the GPU: 1073741824 of 1073741824 are free: give a smaller");
}

TEST_F(CudaDeviceTest, GpusAreAlikeOrNot) {
  const CudaSystem alike = FindGpus(Plugin()).value();
  EXPECT_TRUE(Alike(alike.gpus[0], alike.gpus[1]));
  cuda_standin::Change({.unlike = true});
  const CudaSystem unlike = FindGpus(Plugin()).value();
  EXPECT_FALSE(Alike(unlike.gpus[0], unlike.gpus[1]));
}

TEST_F(CudaDeviceTest, HostThreadsTakeEveryItem) {
  std::atomic<int> sum{0};
  Make()->ForEachOnHost(10, [&](std::int64_t i) { sum += static_cast<int>(i); });
  EXPECT_EQ(sum, 45);
}

TEST_F(CudaDeviceTest, TheHostCannotTouchDeviceMemory) {
  const auto device = CudaDevice::Make(Plugin(), {.threads = 1}).value();  // It forks.
  const std::unique_ptr<DeviceMemory> memory = device->Allocate(100).value();
  EXPECT_DEATH({ memory->data()[0] = std::byte{1}; }, "");
}

// ---- The loader.

TEST(CudaPluginTest, SaysWhyAFileIsNoPlugin) {
  const auto absent = LoadCudaPlugin("/nowhere/libpenstock_cuda.so");
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(absent.status().message(), "there is no CUDA plug-in at /nowhere/libpenstock_cuda.so");

  const std::string text = testing::TempDir() + "/penstock_no_library.so";
  std::ofstream(text) << "no library\n";
  const auto no_library = LoadCudaPlugin(text);
  EXPECT_EQ(no_library.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(no_library.status().message().find("cannot load " + text) == 0)
      << no_library.status();

  // A library, but another one. It is in every process, wherever the system has it.
  std::ifstream maps("/proc/self/maps");
  std::string line, libc;
  while (std::getline(maps, line)) {
    const std::size_t slash = line.find('/');
    if (slash != std::string::npos && line.find("libc.so.6") != std::string::npos) {
      libc = line.substr(slash);
    }
  }
  ASSERT_FALSE(libc.empty());
  EXPECT_EQ(LoadCudaPlugin(libc).status().message(),
            libc + " is no plug-in of this program: it has no penstock_cuda_plugin");
}

TEST(CudaPluginTest, WithoutAPathSaysWhereItLooked) {
  const auto loaded = LoadCudaPlugin("");  // None lies beside the test.
  ASSERT_EQ(loaded.status().code(), absl::StatusCode::kNotFound) << loaded.status();
  EXPECT_NE(loaded.status().message().find("/libpenstock_cuda.so nor on the system's path"),
            absl::string_view::npos);
}

TEST(CudaPluginTest, Texts) {
  EXPECT_EQ(CudaVersionText(13000), "13.0");
  EXPECT_EQ(CudaVersionText(12040), "12.4");
  CudaGpu gpu = {.name = "NVIDIA H100", .compute_major = 9};
  gpu.memory_bytes = std::size_t{80} << 30;
  EXPECT_EQ(Describe(gpu), "NVIDIA H100, compute 9.0, 80.0 GiB");
}

}  // namespace
}  // namespace penstock
