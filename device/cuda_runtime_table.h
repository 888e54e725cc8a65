// SPDX-License-Identifier: Apache-2.0
// cudart's functions as the program sees them; of the plug-in, and of tests with a stand-in for
// cudart.
#pragma once

#include "device/cuda_api.h"

namespace penstock {

// An error that a call gives is not found again by cudaGetLastError.
extern const CudaRuntime kCudaRuntime;

}  // namespace penstock
