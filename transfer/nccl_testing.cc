// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_testing.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <array>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "base/check.h"
#include "base/unique_fd.h"
#include "device/cuda_runtime_table.h"
#include "device/cuda_standin.h"
#include "device/nccl_standin.h"
#include "device/nccl_table.h"
#include "kernels/crc32c.h"
#include "transfer/nccl_link.h"

namespace penstock::transfer {
namespace {

struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  bool held = false;
  std::int64_t begun = 0;
};
Gate& TheGate() {
  static Gate gate;
  return gate;
}

}  // namespace

HoldCopies::HoldCopies() {
  const std::lock_guard lock(TheGate().mutex);
  CHECK(!TheGate().held);
  TheGate().held = true;
}
HoldCopies::~HoldCopies() {
  {
    const std::lock_guard lock(TheGate().mutex);
    TheGate().held = false;
  }
  TheGate().changed.notify_all();
}

std::int64_t CopiesBegun() {
  const std::lock_guard lock(TheGate().mutex);
  return TheGate().begun;
}

const CudaPlugin& NcclTestPlugin() {
  static const CudaPlugin plugin = {.version = kCudaPluginVersion,
                                    .plugin_bytes = sizeof(CudaPlugin),
                                    .runtime = kCudaRuntime,
                                    .kernels = nullptr,
                                    .nccl = LoadNccl};
  return plugin;
}

int CopyUnitsLater(const kernels::CopyUnit* units, std::int32_t count, const kernels::CopyRun* runs,
                   std::uint32_t* crcs, CudaStreamHandle stream) {
  {
    const std::lock_guard lock(TheGate().mutex);
    ++TheGate().begun;
  }
  // The tables are read when the stream gets there.
  cuda_standin::Enqueue(stream, [units, count, runs, crcs] {
    {
      std::unique_lock lock(TheGate().mutex);
      TheGate().changed.wait(lock, [] { return !TheGate().held; });
    }
    const cuda_standin::Work work;
    for (std::int32_t u = 0; u < count; ++u) {
      std::uint32_t crc = 0;
      for (std::uint32_t r = 0; r < units[u].runs; ++r) {
        const kernels::CopyRun& run = runs[units[u].first_run + r];
        crc = kernels::Crc32c(crc, run.from, run.bytes);
        if (run.to != nullptr) std::memcpy(run.to, run.from, run.bytes);
      }
      if (crcs != nullptr) crcs[u] = crc;
    }
  });
  return kCudaSuccess;
}

NcclTestGpu MakeNcclTestGpu(int gpu, NcclComms::Options options, const CudaPlugin& plugin) {
  const NcclComms::Options usual;
  if (plugin.kernels == nullptr) options.copy_units = CopyUnitsLater;
  if (options.slots == usual.slots) options.slots = 3;
  if (options.slot_bytes == usual.slot_bytes) options.slot_bytes = std::size_t{256} << 10;
  NcclTestGpu made;
  made.device = CudaDevice::Make(plugin, {.threads = 1}, gpu).value();
  made.comms = NcclComms::Make(*made.device, options).value();
  return made;
}

NcclWorld::NcclWorld(const NcclComms::Options& first, const NcclComms::Options& second,
                     int second_gpu, const CudaPlugin& plugin)
    : first_gpus_(1) {
  gpus_.push_back(MakeNcclTestGpu(0, first, plugin));
  gpus_.push_back(MakeNcclTestGpu(second_gpu, second, plugin));
}

NcclWorld::NcclWorld(std::size_t first_gpus, std::size_t second_gpus) : first_gpus_(first_gpus) {
  const auto all = static_cast<int>(first_gpus + second_gpus);
  cuda_standin::Change({.devices = all});
  for (int i = 0; i < all; ++i) gpus_.push_back(MakeNcclTestGpu(i, {}));
}

NcclWorld::~NcclWorld() {
  nccl_standin::Set({});
  // An abort that missed its deadline, and is not back yet, would keep its memory for ever.
  for (NcclTestGpu& gpu : gpus_) {
    CHECK(Until([&] { return gpu.comms->load().aborting == 0; }));
    gpu.comms.reset();
  }
  cuda_standin::Change({});
}

std::vector<NcclComms*> NcclWorld::CommsOf(std::size_t begin, std::size_t end) const {
  std::vector<NcclComms*> comms;
  for (std::size_t i = begin; i < end; ++i) comms.push_back(gpus_[i].comms.get());
  return comms;
}

std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> NcclWorld::Connect(SegmentTable& first,
                                                                           SegmentTable& second) {
  std::array<int, 2> fds{};
  CHECK_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
  return {
      MakeNcclLink(epoll_loop(), UniqueFd(fds[0]), first, CommsOf(0, first_gpus_), {.first = true})
          .value(),
      MakeNcclLink(epoll_loop(), UniqueFd(fds[1]), second, CommsOf(first_gpus_, gpus_.size()), {})
          .value()};
}

std::byte* NcclWorld::Memory(std::size_t bytes, SegmentTable::Segment& segment) {
  pinned_.push_back(gpus_[0].device->AllocateHost(bytes).value());
  segment = {.bytes = {pinned_.back()->data(), bytes}};
  return pinned_.back()->data();
}

std::unique_ptr<DeviceMemory> NcclWorld::OnDevice(std::size_t i, std::span<const std::byte> bytes) {
  auto memory = gpus_[i].device->Allocate(bytes.size()).value();
  const auto stream = gpus_[i].device->NewStream();
  stream->Copy(memory->data(), bytes.data(), bytes.size());
  CHECK(stream->Synchronize().ok());
  return memory;
}

std::vector<std::byte> NcclWorld::Bytes(std::size_t i, DeviceMemory& memory) {
  std::vector<std::byte> bytes(memory.size_bytes());
  const auto stream = gpus_[i].device->NewStream();
  stream->Copy(bytes.data(), memory.data(), bytes.size());
  CHECK(stream->Synchronize().ok());
  return bytes;
}

std::unique_ptr<LinkWorld> MakeNcclWorld() { return std::make_unique<NcclWorld>(); }
std::unique_ptr<LinkWorld> MakeNcclRendezvousWorld() {
  auto world = std::make_unique<NcclWorld>();
  nccl_standin::Set({.rendezvous = true});
  return world;
}

}  // namespace penstock::transfer
