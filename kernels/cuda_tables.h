// SPDX-License-Identifier: Apache-2.0
// A batch's tables for GPU kernels: what a KvBatch says, flat (kernels/batch_cuda.h), and the way of
// such tables, and of all else that a step needs from the host, to the GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "device/cuda_device.h"
#include "kernels/batch_cuda.h"
#include "kernels/ops.h"

namespace penstock::kernels {

// A ring of pinned host memory and as much on the GPU: what is written to the one is copied to the
// same place of the other, in the order of the stream. Coming round again waits for the stream, and
// what was sent before is then gone.
//
// Of one stream's thread; the stream outlives it.
class CudaUploads {
 public:
  // RESOURCE_EXHAUSTED as Device::Allocate.
  static absl::StatusOr<std::unique_ptr<CudaUploads>> Make(CudaDevice& device, CudaStream& stream,
                                                           std::size_t bytes);
  struct Place {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    std::size_t bytes = 0;
  };
  // The next `bytes`, aligned to 64. A ring that is smaller becomes larger; CHECKs where that fails.
  Place Reserve(std::size_t bytes);
  // Nothing of the next `bytes`, in up to 8 pieces, will send the ring round.
  void MakeRoom(std::size_t bytes);
  void Send(const Place& place) {
    if (!in_step_) stream_.Copy(place.device, place.host, place.bytes);
  }
  // A step: what is reserved lies at the ring's begin, in sizes that are powers of two, so that steps
  // which are alike have the same places, and Send leaves it to EndStep, or to nobody. BeginStep waits
  // for the stream, and may be called again to begin anew. A ring that has to grow loses the begin of
  // its step, which is not whole then.
  void BeginStep();
  bool step_is_whole() const { return round_ == step_round_; }
  void EndStep(bool send);
  bool in_step() const { return in_step_; }
  // Counts up whenever what was sent before is gone.
  std::uint64_t round() const { return round_; }

 private:
  CudaUploads(CudaDevice& device, CudaStream& stream) : device_(device), stream_(stream) {}
  absl::Status Resize(std::size_t bytes);

  CudaDevice& device_;
  CudaStream& stream_;
  std::unique_ptr<DeviceMemory> host_;
  std::unique_ptr<DeviceMemory> on_device_;
  std::size_t used_ = 0;
  std::uint64_t round_ = 1;
  bool in_step_ = false;
  std::uint64_t step_round_ = 0;  // In which the step began.
};

// Device memory that only grows; growing waits for the stream and loses what was there.
class CudaScratch {
 public:
  CudaScratch(CudaDevice& device, CudaStream& stream) : device_(device), stream_(stream) {}
  // CHECKs that the GPU has the memory.
  std::byte* AtLeast(std::size_t bytes);

 private:
  CudaDevice& device_;
  CudaStream& stream_;
  std::unique_ptr<DeviceMemory> memory_;
};

std::size_t TableBytes(const KvBatch& kv);
// The tables of `kv` on the GPU; cache_layer is left 0. In a step partitions_max is rounded up to a
// power of two, too. They are there for one round of `uploads`. The
// sequences' rows must lie one after another, from row 0 on: kernels want them so.
CudaKv UploadTables(const KvBatch& kv, CudaUploads& uploads);

}  // namespace penstock::kernels
