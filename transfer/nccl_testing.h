// SPDX-License-Identifier: Apache-2.0
// GPUs for tests of kind nccl: the stand-ins for cudart and NCCL, and one for the copy kernel,
// which goes on after its launch as a GPU's does.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "device/cuda_device.h"
#include "transfer/link_testing.h"
#include "transfer/nccl_comms.h"

namespace penstock::transfer {

// The plug-in of such GPUs: without kernels.
const CudaPlugin& NcclTestPlugin();
// As nccl_ring.h wants it, on the stream's thread.
int CopyUnitsLater(const kernels::CopyUnit* units, std::int32_t count, const kernels::CopyRun* runs,
                   std::uint32_t* crcs, CudaStreamHandle stream);

std::int64_t CopiesBegun();  // Ever, of CopyUnitsLater.

// While one lives no copy runs. One at a time.
class HoldCopies {
 public:
  HoldCopies();
  ~HoldCopies();
  HoldCopies(const HoldCopies&) = delete;
  HoldCopies& operator=(const HoldCopies&) = delete;
};

struct NcclTestGpu {
  std::unique_ptr<CudaDevice> device;
  std::unique_ptr<NcclComms> comms;
};
// Slots of 256 KiB, three each way, unless the options say otherwise. Where the plug-in
// has no kernels, copies are CopyUnitsLater's.
NcclTestGpu MakeNcclTestGpu(int gpu, NcclComms::Options options,
                            const CudaPlugin& plugin = NcclTestPlugin());

// Some of them, in one process: each end of a link has its own, one unless the world is made with
// more, and unless both are to be GPU 0.
class NcclWorld : public EpollWorld {
 public:
  explicit NcclWorld(const NcclComms::Options& first = {}, const NcclComms::Options& second = {},
                     int second_gpu = 1, const CudaPlugin& plugin = NcclTestPlugin());
  // So many GPUs of the first end, and behind them those of the second.
  NcclWorld(std::size_t first_gpus, std::size_t second_gpus);
  ~NcclWorld() override;
  std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> Connect(SegmentTable& first,
                                                                  SegmentTable& second) override;
  // Pinned memory, which GPU and host see.
  std::byte* Memory(std::size_t bytes, SegmentTable::Segment& segment) override;

  NcclTestGpu& gpu(std::size_t i) { return gpus_[i]; }
  std::size_t first_gpus() const { return first_gpus_; }
  EpollLoop& real_loop() { return epoll_loop(); }
  // Of the device, filled from `bytes`; and what lies there.
  std::unique_ptr<DeviceMemory> OnDevice(std::size_t i, std::span<const std::byte> bytes);
  std::vector<std::byte> Bytes(std::size_t i, DeviceMemory& memory);

 private:
  std::vector<NcclComms*> CommsOf(std::size_t begin, std::size_t end) const;

  const std::size_t first_gpus_;
  std::vector<NcclTestGpu> gpus_;
  std::vector<std::unique_ptr<DeviceMemory>> pinned_;
};

}  // namespace penstock::transfer
