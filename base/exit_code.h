// SPDX-License-Identifier: Apache-2.0
// How a process ends that others watch: what they tell apart, besides 0 and 1.
#pragma once

namespace penstock {

// A GPU failed under work (device/gpu_failure.h): the process is started again, and if the GPU is
// well, so is all else.
inline constexpr int kExitGpuFailed = 3;

}  // namespace penstock
