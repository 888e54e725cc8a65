// SPDX-License-Identifier: Apache-2.0
// Checksums of units in a GPU's memory, by the kernel that copies them elsewhere, on a stream of its
// own: a pass over bytes that the GPU has just written, some 100 us for 100 MB.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "device/cuda_device.h"
#include "transfer/life.h"
#include "transfer/nccl_copies.h"
#include "transfer/unit_cursor.h"
#include "transfer/unit_sums.h"

namespace penstock::transfer {

class GpuSums final : public UnitSums {
 public:
  // RESOURCE_EXHAUSTED: no memory can be pinned. `loop` and `device` outlive it.
  static absl::StatusOr<std::unique_ptr<GpuSums>> Make(Loop& loop, CudaDevice& device,
                                                       CopyUnitsFn copy_units);
  // Waits for what is under way; what was asked for is never told.
  ~GpuSums() override;

  void Compute(const std::byte* base, std::span<const std::uint64_t> offsets,
               std::span<const ByteRun> runs, std::shared_ptr<const Event> written,
               Done done) override;

 private:
  struct Request {
    const std::byte* base = nullptr;
    std::vector<ByteRun> runs;
    std::vector<Unit> units;                     // Into `runs`.
    UnitCursor cursor{std::span<const Unit>()};  // Over `units`.
    std::shared_ptr<const Event> written;
    bool waits = false;  // The copies' stream, for that.
    std::vector<std::uint32_t> crcs;
    std::size_t passes = 0;  // Under way.
    Done done;
  };
  // A kernel over a part of a request.
  struct Pass {
    Request* request = nullptr;
    SlotCut cut;
    CopyTables* tables = nullptr;
  };
  GpuSums(Loop& loop, CudaDevice& device, CopyUnitsFn copy_units,
          std::unique_ptr<DeviceMemory> tables);

  void Work();
  absl::Status Begin();
  absl::Status Take();
  void TellEnds();
  void Fail(const absl::Status& why);

  Loop& loop_;
  const std::unique_ptr<DeviceMemory> tables_;
  std::vector<CopyTables*> free_;
  std::deque<std::unique_ptr<Request>> requests_;  // In order; the first ones are under way.
  std::size_t begun_ = 0;                          // So many of them wholly.
  std::deque<Pass> passes_;                        // In the order of the copies.
  std::optional<Loop::TimerId> poll_;
  NcclCopies copies_;  // Last: it uses the tables.
  Life life_;
};

}  // namespace penstock::transfer
