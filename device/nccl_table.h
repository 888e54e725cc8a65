// SPDX-License-Identifier: Apache-2.0
// NCCL's functions as the program sees them; of the plug-in, and of tests with a stand-in for NCCL.
#pragma once

#include "device/nccl_api.h"

namespace penstock {

// Looks for NCCL when first called. Any thread; what it gives lives as long as the process. Without
// functions where there is none, or one older than the header, or of another major number.
const NcclLibrary* LoadNccl();

}  // namespace penstock
