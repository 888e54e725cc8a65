// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_ring.h"

#include <utility>

#include "base/status.h"

namespace penstock::transfer {

absl::StatusOr<std::unique_ptr<NcclRing>> NcclRing::Make(CudaDevice& device, std::size_t slots,
                                                         std::size_t slot_bytes) {
  ASSIGN_OR_RETURN(auto memory, device.Allocate(2 * slots * slot_bytes));
  ASSIGN_OR_RETURN(auto tables, device.AllocateHost(2 * slots * sizeof(CopyTables)));
  return std::unique_ptr<NcclRing>(
      new NcclRing(std::move(memory), std::move(tables), slots, slot_bytes));
}

}  // namespace penstock::transfer
