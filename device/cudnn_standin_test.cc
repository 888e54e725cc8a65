// SPDX-License-Identifier: Apache-2.0
// The stand-in for cuDNN refuses what cuDNN refuses. What it computes is tested where attention is.
#include "device/cudnn_standin.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/float16.h"
#include "device/cuda_runtime_table.h"
#include "device/cuda_standin.h"
#include "device/cudnn_sdpa.h"
#include "device/cudnn_table.h"

namespace penstock {
namespace {

using Descriptor = cudnnBackendDescriptor_t;

Descriptor New(cudnnBackendDescriptorType_t type) {
  Descriptor made = nullptr;
  EXPECT_EQ(cudnnBackendCreateDescriptor(type, &made), CUDNN_STATUS_SUCCESS);
  return made;
}

TEST(CudnnStandinTest, ChecksAttributes) {
  const std::int64_t misuses = cudnn_standin::Now().misuses;
  const Descriptor tensor = New(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  const std::int64_t dims[4] = {1, 2, 3, 4};
  const auto set = [&](cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                       std::int64_t count, const void* values) {
    return cudnnBackendSetAttribute(tensor, name, type, count, values);
  };
  EXPECT_EQ(set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT32, 4, dims),
            CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE);
  EXPECT_EQ(set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 3, dims), CUDNN_STATUS_BAD_PARAM);
  EXPECT_EQ(set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, dims),
            CUDNN_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(cudnnBackendFinalize(tensor), CUDNN_STATUS_BAD_PARAM);  // Without any.
  // What names it must wait for it.
  const Descriptor load = New(CUDNN_BACKEND_OPERATION_PAGED_CACHE_LOAD_DESCRIPTOR);
  EXPECT_EQ(cudnnBackendSetAttribute(load, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_YDESC,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &tensor),
            CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED);
  const std::int64_t one = 1;
  const cudnnDataType_t type = CUDNN_DATA_HALF;
  EXPECT_EQ(set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims), CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, dims), CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type), CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &one), CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &one), CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(cudnnBackendFinalize(tensor), CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &one), CUDNN_STATUS_BAD_PARAM);
  EXPECT_EQ(cudnnBackendSetAttribute(load, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_YDESC,
                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &tensor),
            CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(cudnn_standin::Now().misuses, misuses + 6);
  EXPECT_EQ(cudnnBackendDestroyDescriptor(load), CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(cudnnBackendDestroyDescriptor(tensor), CUDNN_STATUS_SUCCESS);
  EXPECT_EQ(cudnnBackendDestroyDescriptor(tensor), CUDNN_STATUS_BAD_PARAM);
}

// Two sequences of up to 4 query tokens, 2 heads, in blocks of 4 keys.
constexpr CudnnSdpaShape kShape = {.bf16 = false,
                                   .sequences = 2,
                                   .q_tokens = 4,
                                   .kv_blocks = 2,
                                   .block_tokens = 4,
                                   .qo_heads = 2,
                                   .kv_heads = 1,
                                   .k_dim = 8,
                                   .v_dim = 8,
                                   .pool_blocks = 4,
                                   .block_stride = 64,
                                   .head_stride = 64};

TEST(CudnnStandinTest, ChecksShapes) {
  const CudnnApi& api = *LoadCudnn()->api;
  CudnnHandle handle = nullptr;
  ASSERT_EQ(api.create(&handle), 0);
  const auto why_not = [&](const CudnnSdpaShape& shape) -> std::string {
    char why[256] = {};
    std::size_t workspace = 0;
    CudnnSdpa* const made = api.sdpa_make(handle, shape, &workspace, why, sizeof(why));
    if (made != nullptr) api.sdpa_free(made);
    return why;
  };
  EXPECT_EQ(why_not(kShape), "");
  CudnnSdpaShape heads = kShape;
  heads.qo_heads = 3;
  heads.kv_heads = 2;
  EXPECT_EQ(why_not(heads), "finalize: CUDNN_STATUS_BAD_PARAM (heads do not divide)");
  CudnnSdpaShape none = kShape;
  none.kv_blocks = 0;
  EXPECT_EQ(why_not(none), "finalize: CUDNN_STATUS_BAD_PARAM (a dimension of 0)");
  api.destroy(handle);
  EXPECT_EQ(cudnn_standin::Now().descriptors, 0);
  EXPECT_EQ(cudnn_standin::Now().handles, 0);

  // Softmax before scores.
  const CudnnSymbols cudnn = FindCudnnSymbols();
  CudnnGraph graph(cudnn);
  const CudnnGraph::Dims dims = {{1, 1, 4, 4}};
  const auto scores = graph.Virtual(CUDNN_DATA_FLOAT, dims, CudnnGraph::Packed(dims));
  const auto powers = graph.Virtual(CUDNN_DATA_FLOAT, dims, CudnnGraph::Packed(dims));
  graph.Pointwise(CUDNN_POINTWISE_EXP, CUDNN_DATA_FLOAT, {.x = scores}, powers);
  EXPECT_TRUE(graph.Configs({}).empty());
  EXPECT_EQ(graph.why(),
            "finalize: CUDNN_STATUS_BAD_PARAM (tensor 1000 is used before it is made)");
}

// A pool whose V are ones, on the GPU.
class CudnnStandinRunTest : public testing::Test {
 protected:
  CudnnStandinRunTest() {
    cuda_standin::Reset({});
    EXPECT_EQ(cuda_runtime_.stream_create(&stream_), 0);
    EXPECT_EQ(cuda_runtime_.malloc(&memory_, kBytes), 0);
    std::vector<F16> halves(kBytes / 2, ToF16(1));
    auto* const ints = reinterpret_cast<std::int32_t*>(halves.data() + kInts / 2);
    // blocks [2, 2], q_lengths, kv_lengths, q_offsets, o_offsets.
    const std::int32_t tables[] = {3, 0, 1, 0, 4, 2, 6, 3, 0, 64, 96, 0, 64, 96};
    std::memcpy(ints, tables, sizeof(tables));
    EXPECT_EQ(cuda_runtime_.memcpy_async(memory_, halves.data(), kBytes, stream_), 0);
    EXPECT_EQ(api_.create(&handle_), 0);
    std::size_t workspace = 0;
    sdpa_ = api_.sdpa_make(handle_, kShape, &workspace, nullptr, 0);
    EXPECT_LE(workspace, kBytes - kWorkspace);
    auto* const base = static_cast<std::byte*>(memory_);
    const auto* const table = reinterpret_cast<const std::int32_t*>(base + kInts);
    data_ = {.q = base,
             .k = base + 1024,
             .v = base + 1024 + 64,
             .o = base + 512,
             .blocks = table,
             .q_lengths = table + 4,
             .kv_lengths = table + 6,
             .q_offsets = table + 8,
             .o_offsets = table + 11,
             .workspace = base + kWorkspace,
             .scale = 1};
  }
  ~CudnnStandinRunTest() override {
    EXPECT_EQ(cuda_runtime_.stream_synchronize(stream_), 0);
    api_.sdpa_free(sdpa_);
    api_.destroy(handle_);
    EXPECT_EQ(cuda_runtime_.free(memory_), 0);
    EXPECT_EQ(cuda_runtime_.stream_destroy(stream_), 0);
  }

  static constexpr std::size_t kInts = 2048, kWorkspace = 3072, kBytes = 8192;
  const CudaRuntime& cuda_runtime_ = kCudaRuntime;
  const CudnnApi& api_ = *LoadCudnn()->api;
  CudaStreamHandle stream_ = nullptr;
  void* memory_ = nullptr;
  CudnnHandle handle_ = nullptr;
  CudnnSdpa* sdpa_ = nullptr;
  CudnnSdpaData data_;
};

TEST_F(CudnnStandinRunTest, RunsLater) {
  const std::int64_t runs = cudnn_standin::Now().runs;
  EXPECT_EQ(api_.sdpa_run(sdpa_, data_, stream_), 0);
  std::vector<F16> out(96);
  EXPECT_EQ(cuda_runtime_.memcpy_async(out.data(), data_.o, 192, stream_), 0);
  EXPECT_EQ(cuda_runtime_.stream_synchronize(stream_), 0);
  EXPECT_EQ(cudnn_standin::Now().runs, runs + 1);
  EXPECT_EQ(cudnn_standin::Now().last_misuse.find("page"), std::string::npos);
  for (const F16 value : out) EXPECT_EQ(ToFloat(value), 1);  // The mean of ones.
}

TEST_F(CudnnStandinRunTest, ChecksAddresses) {
  const std::int64_t misuses = cudnn_standin::Now().misuses;
  CudnnSdpaData data = data_;
  std::int32_t host[4] = {};
  data.blocks = host;
  EXPECT_EQ(api_.sdpa_run(sdpa_, data, stream_), CUDNN_STATUS_BAD_PARAM);
  data = data_;
  data.workspace = nullptr;
  EXPECT_EQ(api_.sdpa_run(sdpa_, data, stream_), CUDNN_STATUS_BAD_PARAM);
  EXPECT_EQ(cudnn_standin::Now().misuses, misuses + 2);
  data = data_;
  data.blocks = data_.q_offsets;  // Where there is 64.
  EXPECT_EQ(api_.sdpa_run(sdpa_, data, stream_), 0);
  EXPECT_EQ(cuda_runtime_.stream_synchronize(stream_), 0);
  EXPECT_EQ(cudnn_standin::Now().misuses, misuses + 3);
  EXPECT_EQ(cudnn_standin::Now().last_misuse, "page 64 is not in the pool");
}

}  // namespace
}  // namespace penstock
