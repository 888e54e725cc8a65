// SPDX-License-Identifier: Apache-2.0
// The system's cuDNN, where there is one: that it has an engine for our graph, on GPUs that are only
// described to it.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "device/cudnn_sdpa.h"
#include "device/cudnn_symbols.h"
#include "device/cudnn_table.h"

namespace penstock {
namespace {

struct Gpu {
  const char* name;
  int compute;  // 900 is 9.0.
  int multiprocessors;
  int shared_bytes;  // Of a block.
};

std::string Json(const Gpu& gpu) {
  return R"({"cudaDeviceId":0,"deviceVer":)" + std::to_string(gpu.compute) +
         R"(,"driverVer":13000,"multiProcessorCount":)" + std::to_string(gpu.multiprocessors) +
         R"(,"totalGlobalMem":85014020096,"maxGridSize":[2147483647,65535,65535],)"
         R"("maxBlockSize":[1024,1024,64],"regsPerBlock":65536,"smClockRateKHz":1980000,)"
         R"("memClockRateKHz":2619000,"memoryBusWidth":5120,"l2CacheSize":52428800,"warpSize":32,)"
         R"("maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":)" +
         std::to_string(gpu.shared_bytes) +
         R"(,"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,"pciDeviceId":0,)"
         R"("maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"isTccDriver":0,)"
         R"("supportCoopLaunch":1,"deviceName":")" +
         gpu.name + R"("})";
}

TEST(CudnnOpenedTest, IsThereOrSaysWhyNot) {
  const CudnnLibrary& cudnn = *LoadCudnn();
  EXPECT_EQ(&cudnn, LoadCudnn());
  if (cudnn.api == nullptr) {
    EXPECT_NE(std::string(cudnn.why_not), "");
    GTEST_SKIP() << cudnn.why_not;
  }
  EXPECT_GE(cudnn.version, 91000);
  EXPECT_STREQ(cudnn.api->get_error_string(0), "CUDNN_STATUS_SUCCESS");
}

TEST(CudnnOpenedTest, RefusesOtherVersions) {
  EXPECT_EQ(WhyNotCudnnVersion(91000), "");
  EXPECT_EQ(WhyNotCudnnVersion(90903), "cuDNN is 9.9.3, the plug-in needs 9.10.0 or a later 9");
  EXPECT_NE(WhyNotCudnnVersion(100000), "");
}

TEST(CudnnOpenedTest, HasAnEngineForOurGraph) {
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
  GTEST_SKIP() << "what cuDNN keeps until the process ends counts as a leak";
#endif
#endif
  const CudnnSymbols cudnn = FindCudnnSymbols();
  if (!cudnn.why_not.empty()) GTEST_SKIP() << cudnn.why_not;
  // It looks for a driver even where it needs none of it; one that does nothing comes with CUDA.
  void* driver = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (driver == nullptr) driver = ::dlopen(PENSTOCK_CUDA_STUB, RTLD_NOW | RTLD_GLOBAL);
  if (driver == nullptr) GTEST_SKIP() << "neither a driver nor a stub of one";
  CudnnGraph described(cudnn);
  (void)described.Properties(Json({"A100", 800, 108, 166912}));
  if (!described.why().empty()) {
    GTEST_SKIP() << "this cuDNN wants GPUs described otherwise: " << described.why();
  }
  for (const Gpu& gpu : {Gpu{"A100", 800, 108, 166912}, Gpu{"H100", 900, 132, 232448},
                         Gpu{"B200", 1000, 148, 232448}}) {
    for (const std::int32_t dim : {64, 128}) {
      for (const bool bf16 : {false, true}) {
        SCOPED_TRACE(std::string(gpu.name) + " dim " + std::to_string(dim) +
                     (bf16 ? " bf16" : " f16"));
        const CudnnSdpaShape shape = {.bf16 = bf16,
                                      .sequences = 4,
                                      .q_tokens = 512,
                                      .kv_blocks = 64,
                                      .block_tokens = 32,
                                      .qo_heads = 32,
                                      .kv_heads = 8,
                                      .k_dim = dim,
                                      .v_dim = dim,
                                      .pool_blocks = 65536,
                                      .block_stride = std::int64_t{1} * 32 * 8 * 2 * 32 * dim,
                                      .head_stride = std::int64_t{2} * 32 * dim};
        EXPECT_EQ(WhyNotCudnnSdpa(cudnn, Json(gpu), shape), "");
        CudnnSdpaShape uneven = shape;
        uneven.qo_heads = 10;
        uneven.kv_heads = 4;
        EXPECT_NE(WhyNotCudnnSdpa(cudnn, Json(gpu), uneven), "");
      }
    }
  }
}

}  // namespace
}  // namespace penstock
