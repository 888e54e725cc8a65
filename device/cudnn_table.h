// SPDX-License-Identifier: Apache-2.0
// cuDNN's attention as the program sees it; of the plug-in, and of tests with a stand-in for cuDNN.
#pragma once

#include "device/cudnn_api.h"

namespace penstock {

// Looks for cuDNN when first called. Any thread; what it gives lives as long as the process. Without
// functions where there is none, or one older than 9.10, or of another major number.
const CudnnLibrary* LoadCudnn();

}  // namespace penstock
