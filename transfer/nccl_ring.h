// SPDX-License-Identifier: Apache-2.0
// The staging memory of one communicator: a few slots that its sends read, and as many that its
// receives write, each with the tables of the copy that fills or empties it.
//
// While a communicator lives, and until its abort has returned, NCCL may write a slot; so a ring
// goes back to be used by another only when the communicator, and all who copy, have let go of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "device/cuda_device.h"
#include "kernels/units_cuda.h"

namespace penstock::transfer {

// kernels::CopyUnitsCuda, as the plug-in's table has it.
using CopyUnitsFn = int (*)(const kernels::CopyUnit* units, std::int32_t count,
                            const kernels::CopyRun* runs, std::uint32_t* crcs,
                            CudaStreamHandle stream);

// Pinned: written by the host for one copy, and unchanged until that has ended.
struct CopyTables {
  static constexpr std::size_t kRunsMax = 4096;  // And units, each of which has a run at least.
  kernels::CopyUnit units[kRunsMax];
  kernels::CopyRun runs[kRunsMax];
  std::uint32_t crcs[kRunsMax];
};

class NcclRing {
 public:
  struct Slot {
    std::byte* data = nullptr;  // Of the device.
    CopyTables* tables = nullptr;
  };
  // RESOURCE_EXHAUSTED with both numbers where the device has no room: 2 * slots * slot_bytes
  // there, and 2 * slots * sizeof(CopyTables) of pinned host memory.
  static absl::StatusOr<std::unique_ptr<NcclRing>> Make(CudaDevice& device, std::size_t slots,
                                                        std::size_t slot_bytes);

  std::size_t slots() const { return slots_; }  // Each way.
  std::size_t slot_bytes() const { return slot_bytes_; }
  Slot out(std::size_t i) const { return At(i); }
  Slot in(std::size_t i) const { return At(slots_ + i); }
  // All slots, for registration.
  std::byte* data() const { return memory_->data(); }
  std::size_t size_bytes() const { return 2 * slots_ * slot_bytes_; }

 private:
  NcclRing(std::unique_ptr<DeviceMemory> memory, std::unique_ptr<DeviceMemory> tables,
           std::size_t slots, std::size_t slot_bytes)
      : memory_(std::move(memory)),
        tables_(std::move(tables)),
        slots_(slots),
        slot_bytes_(slot_bytes) {}
  Slot At(std::size_t i) const {
    return {memory_->data() + i * slot_bytes_, reinterpret_cast<CopyTables*>(tables_->data()) + i};
  }

  const std::unique_ptr<DeviceMemory> memory_;
  const std::unique_ptr<DeviceMemory> tables_;
  const std::size_t slots_;
  const std::size_t slot_bytes_;
};

}  // namespace penstock::transfer
