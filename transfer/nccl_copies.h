// SPDX-License-Identifier: Apache-2.0
// Copies between slots of a ring and the scattered bytes of reads, by the kernel that computes
// checksums in the same pass, on a stream of their own. They end in the order in which they began.
//
// On the link's loop, which only begins them and asks; who destroys this waits for what is under
// way, which is a kernel and never a peer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "device/cuda_device.h"
#include "transfer/cuda_stopwatch.h"
#include "transfer/nccl_ring.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {

// A slot's share of a read. Both sides cut alike: as many bytes as the slot has and as many runs as
// its tables, long runs in pieces so that many blocks of the GPU share them.
struct SlotCut {
  struct Part {
    std::size_t unit = 0;  // Of the read.
    std::uint64_t bytes = 0;
  };
  std::size_t bytes = 0;
  std::vector<Part> parts;  // One for each of the tables' units.
};
// Advances the cursor over what fits into `slot`, at most `bytes_max`, and writes the slot's
// tables. From `source` into the slot; or, where that is null, out of the slot to the units'
// places. A slot without data holds none: the units' checksums alone are wanted.
SlotCut CutSlot(UnitCursor& cursor, std::size_t bytes_max, const std::byte* source,
                const NcclRing::Slot& slot);

class NcclCopies {
 public:
  // `device` outlives this.
  NcclCopies(CudaDevice& device, CopyUnitsFn copy_units)
      : device_(device), copy_units_(copy_units), stream_(device.plugin(), device.gpu()) {}
  ~NcclCopies();
  NcclCopies(const NcclCopies&) = delete;
  NcclCopies& operator=(const NcclCopies&) = delete;

  // Begins what the slot's tables say. The ring is held until it has ended. INTERNAL: the GPU
  // failed.
  absl::Status Begin(std::shared_ptr<NcclRing> ring, const NcclRing::Slot& slot, std::size_t units,
                     bool checksums);
  // What is begun from now on waits for that. INTERNAL: it does not, the GPU failed.
  absl::Status WaitFor(const Event& event) {
    stream_.WaitFor(event);
    return stream_.failed();
  }
  std::size_t under_way() const { return copies_.size(); }
  // How long the first that is under way took on the GPU; then it is no more. Nothing while it goes
  // on. INTERNAL: the GPU failed.
  absl::StatusOr<std::optional<Duration>> TakeFirst();
  // Until all have ended. A kernel that does not in half a minute ends the process (CHECKed): it
  // may still write what its reader believes to be its own.
  void WaitForAll();

 private:
  struct Copy {
    std::shared_ptr<NcclRing> ring;  // Shared: no communicator gets it before.
    CudaStopwatch time;
  };
  absl::Status Failed(int error, const char* what) const;

  CudaDevice& device_;
  const CopyUnitsFn copy_units_;
  CudaStream stream_;
  std::deque<Copy> copies_;
};

}  // namespace penstock::transfer
