// SPDX-License-Identifier: Apache-2.0
// cuBLASLt's functions as the program sees them; of the plug-in, and of tests with a stand-in for
// cuBLASLt.
#pragma once

#include "device/cublas_lt_api.h"

namespace penstock {

// Looks for cuBLASLt when first called. Any thread; what it gives lives as long as the process.
// Without functions where there is none, or one of a major version that the header does not fit.
const CublasLtLibrary* LoadCublasLt();

}  // namespace penstock
