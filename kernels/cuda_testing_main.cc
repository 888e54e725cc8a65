// SPDX-License-Identifier: Apache-2.0
// The main of test programs for a real GPU. Exits with 77 (skipped) where there is none.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU (%s)\n", cudaGetErrorString(error));
    return 77;
  }
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) == cudaSuccess) {
    std::printf("GPU 0: %s, sm_%d%d\n", properties.name, properties.major, properties.minor);
  }
  return RUN_ALL_TESTS();
}
