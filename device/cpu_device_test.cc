// SPDX-License-Identifier: Apache-2.0
#include "device/cpu_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <regex>
#include <string>
#include <vector>

#include "device/cpu_info.h"

namespace penstock {
namespace {

std::unique_ptr<CpuDevice> Cpu(int threads = 1) {
  ThreadPool::Options options;
  options.threads = threads;
  return CpuDevice::Make(options).value();
}

bool AllZero(const std::byte* data, std::size_t bytes) {
  return std::all_of(data, data + bytes, [](std::byte b) { return b == std::byte{0}; });
}

TEST(CpuDeviceTest, DescribesItselfInOneLine) {
  const std::regex want("cpu: 2 threads, (scalar|avx2|avx512(-vnni)?(-bf16)?), [0-9]+\\.[0-9] GiB");
  EXPECT_TRUE(std::regex_match(Cpu(2)->Describe(), want)) << Cpu(2)->Describe();
  EXPECT_EQ(Cpu(1)->Describe().rfind("cpu: 1 thread, ", 0), 0u);
  EXPECT_EQ(Cpu()->kind(), "cpu");
}

TEST(CpuDeviceTest, MakeRefusesWhatThePoolRefuses) {
  ThreadPool::Options options;
  options.threads = 0;
  EXPECT_EQ(CpuDevice::Make(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuDeviceTest, KernelsRunOnItsThreads) {
  const std::unique_ptr<CpuDevice> device = Cpu(3);
  std::atomic<int> calls{0};
  device->threads().Run([&](int) { ++calls; });
  EXPECT_EQ(calls, 3);
}

TEST(CpuDeviceTest, MemoryIsZeroedAlignedAndWritable) {
  const std::unique_ptr<CpuDevice> device = Cpu();
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{4096}, std::size_t{5'000'000}}) {
    const std::unique_ptr<DeviceMemory> memory = device->Allocate(bytes).value();
    EXPECT_EQ(memory->size_bytes(), bytes);
    EXPECT_TRUE(memory->host_visible());
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory->data()) % 4096, 0u);
    EXPECT_TRUE(AllZero(memory->data(), bytes));
    std::memset(memory->data(), 0xAB, bytes);
    EXPECT_EQ(memory->data()[bytes - 1], std::byte{0xAB});
  }
}

TEST(CpuDeviceTest, MoreThanTheMachineHasIsRefusedWithBothNumbers) {
  for (const std::size_t bytes : {std::size_t{1} << 50, std::numeric_limits<std::size_t>::max()}) {
    const absl::Status status = Cpu()->Allocate(bytes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    const std::regex want("cannot allocate " + std::to_string(bytes) +
                          " bytes: the machine has [0-9]+");
    EXPECT_TRUE(std::regex_match(std::string(status.message()), want)) << status;
  }
}

TEST(CpuDeviceTest, DecommitGivesOnlyWholePagesBack) {
  constexpr std::size_t kPage = 4096;
  const std::unique_ptr<CpuDevice> device = Cpu();
  const std::unique_ptr<DeviceMemory> memory = device->Allocate(16 * kPage).value();
  struct Case {
    const char* name;
    std::size_t offset, bytes;
    std::size_t first_page, end_page;  // What is given back.
  };
  for (const Case& c : {
           Case{"whole pages", 2 * kPage, 3 * kPage, 2, 5},
           Case{"borders inside pages", 2 * kPage + 1, 3 * kPage, 3, 5},
           Case{"less than a page", 2 * kPage + 1, kPage, 3, 3},
           Case{"nothing", 4 * kPage, 0, 4, 4},
           Case{"nothing at the end", 16 * kPage, 0, 16, 16},
           Case{"everything", 0, 16 * kPage, 0, 16},
       }) {
    SCOPED_TRACE(c.name);
    std::memset(memory->data(), 0xAB, memory->size_bytes());
    memory->Decommit(c.offset, c.bytes);
    for (std::size_t page = 0; page < 16; ++page) {
      // Its bytes are undefined for callers; on Linux an anonymous page that went comes as zeros.
      EXPECT_EQ(AllZero(memory->data() + page * kPage, kPage),
                page >= c.first_page && page < c.end_page)
          << "page " << page;
    }
  }
}

TEST(CpuDeviceTest, DecommitOutsideTheMemoryIsABug) {
  const std::unique_ptr<CpuDevice> device = Cpu();
  const std::unique_ptr<DeviceMemory> memory = device->Allocate(4096).value();
  EXPECT_DEATH(memory->Decommit(4097, 0), "CHECK failed");
  EXPECT_DEATH(memory->Decommit(1, 4096), "CHECK failed");
  EXPECT_DEATH(memory->Decommit(1, std::numeric_limits<std::size_t>::max()), "CHECK failed");
  EXPECT_DEATH((void)device->Allocate(0), "CHECK failed");
}

std::size_t CommittedBytes(int fd) {
  struct stat info;
  EXPECT_EQ(::fstat(fd, &info), 0);
  return static_cast<std::size_t>(info.st_blocks) * 512;
}

TEST(CpuDeviceTest, SharedMemoryIsWhatPeersMapReadOnly) {
  constexpr std::size_t kBytes = 64 * 4096;
  const std::unique_ptr<CpuDevice> device = Cpu();
  EXPECT_EQ(device->Allocate(kBytes)->get()->shared_fd(), -1);
  const std::unique_ptr<DeviceMemory> memory = device->Allocate(kBytes, Sharing::kPeers).value();
  const int fd = memory->shared_fd();
  ASSERT_GE(fd, 0);
  EXPECT_EQ(memory->size_bytes(), kBytes);
  EXPECT_TRUE(memory->host_visible());
  EXPECT_TRUE(AllZero(memory->data(), kBytes));
  void* const mapped = ::mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  memory->data()[5000] = std::byte{42};
  EXPECT_EQ(static_cast<const std::byte*>(mapped)[5000], std::byte{42});
  EXPECT_EQ(::mprotect(mapped, kBytes, PROT_READ | PROT_WRITE), -1);
  ::munmap(mapped, kBytes);
  EXPECT_EQ(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  const int seals = ::fcntl(fd, F_GET_SEALS);
  EXPECT_EQ(seals, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  EXPECT_EQ(::ftruncate(fd, 0), -1);
}

TEST(CpuDeviceTest, DecommitOfSharedMemoryFreesIt) {
  constexpr std::size_t kBytes = std::size_t{8} << 20;
  const std::unique_ptr<CpuDevice> device = Cpu();
  const std::unique_ptr<DeviceMemory> memory = device->Allocate(kBytes, Sharing::kPeers).value();
  EXPECT_EQ(CommittedBytes(memory->shared_fd()), 0u);
  std::memset(memory->data(), 0xAB, kBytes);
  EXPECT_EQ(CommittedBytes(memory->shared_fd()), kBytes);
  memory->Decommit(kBytes / 2 + 1, kBytes / 4);
  EXPECT_EQ(CommittedBytes(memory->shared_fd()), kBytes - kBytes / 4 + 4096);
  EXPECT_TRUE(AllZero(memory->data() + kBytes / 2 + 4096, kBytes / 4 - 4096));
  EXPECT_EQ(memory->data()[kBytes / 2 + 4095], std::byte{0xAB});
  memory->Decommit(0, kBytes);
  EXPECT_EQ(CommittedBytes(memory->shared_fd()), 0u);
  EXPECT_DEATH(memory->Decommit(1, kBytes), "CHECK failed");
}

TEST(CpuDeviceTest, StreamsCopyInOrderAndAreDoneAtOnce) {
  const std::unique_ptr<CpuDevice> device = Cpu();
  const std::unique_ptr<DeviceMemory> memory = device->Allocate(300).value();
  const std::unique_ptr<Stream> stream = device->NewStream();
  std::vector<std::byte> host(100);
  for (std::size_t i = 0; i < host.size(); ++i) host[i] = static_cast<std::byte>(i);
  stream->Copy(memory->data(), host.data(), 100);
  stream->Copy(memory->data() + 200, memory->data(), 100);
  stream->Copy(nullptr, nullptr, 0);
  const std::unique_ptr<Event> event = stream->Record();
  device->NewStream()->WaitFor(*event);
  EXPECT_TRUE(event->Done());
  EXPECT_TRUE(stream->Synchronize().ok());
  EXPECT_TRUE(std::equal(host.begin(), host.end(), memory->data() + 200));
  EXPECT_TRUE(AllZero(memory->data() + 100, 100));
}

TEST(CpuInfoTest, EachLevelStandsOnTheOneBelow) {
  const CpuInfo& cpu = ThisCpu();
  EXPECT_EQ(&cpu, &ThisCpu());
  EXPECT_TRUE(cpu.avx2 || !cpu.avx512);
  EXPECT_TRUE(cpu.avx512 || !cpu.avx512_vnni);
  EXPECT_TRUE(cpu.avx512 || !cpu.avx512_bf16);
  EXPECT_TRUE((cpu.avx512 && cpu.pclmul) || !cpu.vpclmulqdq);
}

TEST(CpuInfoTest, NamesEachLevel) {
  struct Case {
    CpuInfo cpu;
    const char* want;
  };
  for (const Case& c :
       {Case{{false, false, false, false}, "scalar"}, Case{{true, false, false, false}, "avx2"},
        Case{{true, true, false, false}, "avx512"}, Case{{true, true, true, false}, "avx512-vnni"},
        Case{{true, true, false, true}, "avx512-bf16"},
        Case{{true, true, true, true}, "avx512-vnni-bf16"}}) {
    EXPECT_EQ(Describe(c.cpu), c.want);
  }
}

}  // namespace
}  // namespace penstock
