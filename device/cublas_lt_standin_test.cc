// SPDX-License-Identifier: Apache-2.0
// The stand-in for cuBLASLt, and the plug-in's functions over it.
#include "device/cublas_lt_standin.h"

#include <cublasLt.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check_ok.h"
#include "base/float16.h"
#include "device/cublas_lt_table.h"
#include "device/cuda_device.h"
#include "device/cuda_runtime_table.h"
#include "device/cuda_standin.h"

namespace penstock {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{4} << 20;

const CudaPlugin& Plugin() {
  static const CudaPlugin plugin = {
      .plugin_bytes = sizeof(CudaPlugin), .runtime = kCudaRuntime, .cublas_lt = LoadCublasLt};
  return plugin;
}

class CublasLtStandinTest : public testing::Test {
 protected:
  CublasLtStandinTest() {
    cublas_lt_standin::Set({});
    cuda_standin::Reset({});
    device_ = *CudaDevice::Make(Plugin(), {.threads = 1});
    stream_ = std::make_unique<CudaStream>(Plugin(), 0);
    (void)stream_->handle();
    lt_ = (*FindCublasLt(Plugin()))->api;
    EXPECT_EQ(lt_->create(&handle_), kCublasSuccess);
    workspace_ = *device_->Allocate(kWorkspaceBytes);
  }
  ~CublasLtStandinTest() override {
    EXPECT_EQ(lt_->destroy(handle_), kCublasSuccess);
    EXPECT_EQ(cublas_lt_standin::Now().handles, 0);
    EXPECT_EQ(cublas_lt_standin::Now().objects, 0);
    cublas_lt_standin::Set({});
  }

  // As elements of `type`, on the device.
  std::unique_ptr<DeviceMemory> Put(CublasLtType type, const std::vector<float>& values) {
    std::vector<std::byte> bytes;
    for (const float value : values) {
      const F16 half = ToF16(value);
      const BF16 brain = ToBF16(value);
      const void* from = &value;
      if (type == CublasLtType::kF16) from = &half;
      if (type == CublasLtType::kBF16) from = &brain;
      const auto* const p = static_cast<const std::byte*>(from);
      bytes.insert(bytes.end(), p, p + (type == CublasLtType::kF32 ? 4 : 2));
    }
    std::unique_ptr<DeviceMemory> memory = *device_->Allocate(bytes.size());
    stream_->Copy(memory->data(), bytes.data(), bytes.size());
    return memory;
  }
  std::vector<float> Get(DeviceMemory& memory, std::size_t n) {
    std::vector<float> values(n);
    stream_->Copy(reinterpret_cast<std::byte*>(values.data()), memory.data(), n * sizeof(float));
    CHECK_OK(stream_->Synchronize());
    return values;
  }

  struct Matrices {
    std::unique_ptr<DeviceMemory> x, w, y, bias;
  };
  // Of small whole numbers, whose products and sums are exact in every order.
  Matrices Make(const CublasLtProduct& p) {
    std::mt19937 random(7);
    const auto values = [&](std::int64_t n) {
      std::vector<float> all(static_cast<std::size_t>(n));
      for (float& v : all) v = static_cast<float>(random() % 9) - 4;
      return all;
    };
    x_ = values(p.rows * p.x_stride);
    w_ = values(p.outputs * p.w_stride);
    y_ = values(p.rows * p.y_stride);
    bias_ = values(p.outputs);
    return {Put(p.type, x_), Put(p.type, w_), Put(CublasLtType::kF32, y_),
            Put(CublasLtType::kF32, bias_)};
  }
  int Run(const CublasLtProduct& p, const Matrices& m) {
    CublasLtPlan* plan = nullptr;
    int status = lt_->plan_create(handle_, p, kWorkspaceBytes, &plan);
    if (status != kCublasSuccess) return status;
    status = lt_->multiply(handle_, plan, m.x->data(), m.w->data(),
                           reinterpret_cast<const float*>(m.bias->data()),
                           reinterpret_cast<float*>(m.y->data()), workspace_->data(),
                           kWorkspaceBytes, stream_->handle());
    lt_->plan_destroy(plan);
    return status;
  }

  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<CudaStream> stream_;
  const CublasLtApi* lt_ = nullptr;
  CublasLtHandle handle_ = nullptr;
  std::unique_ptr<DeviceMemory> workspace_;
  std::vector<float> x_, w_, y_, bias_;
};

CublasLtProduct Shape(std::int64_t rows, std::int64_t outputs, std::int64_t cols) {
  return {.rows = rows,
          .outputs = outputs,
          .cols = cols,
          .x_stride = cols,
          .w_stride = cols,
          .y_stride = outputs};
}

TEST_F(CublasLtStandinTest, Multiplies) {
  for (const CublasLtType type : {CublasLtType::kF16, CublasLtType::kBF16, CublasLtType::kF32}) {
    for (const auto& [rows, outputs, cols] :
         {std::tuple{1, 1, 1}, {3, 5, 7}, {33, 20, 64}, {300, 4, 40}}) {
      for (const bool plus : {false, true}) {
        SCOPED_TRACE(
            absl::StrCat("rows=", rows, " outputs=", outputs, " cols=", cols, " plus=", plus));
        CublasLtProduct p = Shape(rows, outputs, cols);
        p.type = type;
        p.x_stride += 2;
        p.w_stride += 4;
        p.y_stride += 3;
        p.add = p.bias = plus;
        const Matrices m = Make(p);
        ASSERT_EQ(Run(p, m), kCublasSuccess) << cublas_lt_standin::Now().last_fault;
        std::vector<float> want = y_;
        for (std::int64_t r = 0; r < rows; ++r) {
          for (std::int64_t o = 0; o < outputs; ++o) {
            float sum = plus ? y_[static_cast<std::size_t>(r * p.y_stride + o)] +
                                   bias_[static_cast<std::size_t>(o)]
                             : 0;
            for (std::int64_t k = 0; k < cols; ++k) {
              sum += x_[static_cast<std::size_t>(r * p.x_stride + k)] *
                     w_[static_cast<std::size_t>(o * p.w_stride + k)];
            }
            want[static_cast<std::size_t>(r * p.y_stride + o)] = sum;
          }
        }
        ASSERT_EQ(Get(*m.y, want.size()), want);
      }
    }
  }
}

std::vector<float> Waves(std::size_t n, float step) {
  std::vector<float> all(n);
  for (std::size_t i = 0; i < n; ++i) all[i] = std::sin(static_cast<float>(i) * step);
  return all;
}

// The first row of products of many sizes, as the heuristic has them.
TEST_F(CublasLtStandinTest, BitsDependOnTheRows) {
  Matrices m;
  m.w = Put(CublasLtType::kF32, Waves(8 * 200, 0.7f));
  m.bias = Put(CublasLtType::kF32, {0});
  std::vector<float> alone;
  int unlike = 0;
  for (const std::int64_t rows : {1, 2, 17, 33, 128, 257}) {
    const auto n = static_cast<std::size_t>(rows);
    m.x = Put(CublasLtType::kF32, Waves(n * 200, 1.3f));
    m.y = Put(CublasLtType::kF32, std::vector<float>(n * 8));
    ASSERT_EQ(Run(Shape(rows, 8, 200), m), kCublasSuccess) << cublas_lt_standin::Now().last_fault;
    const std::vector<float> row = Get(*m.y, 8);
    if (alone.empty()) alone = row;
    unlike += row != alone ? 1 : 0;
    for (std::size_t i = 0; i < row.size(); ++i) EXPECT_NEAR(row[i], alone[i], 1e-4);
  }
  EXPECT_GE(unlike, 4);
}

// cuBLASLt's own functions.
class RawProduct {
 public:
  RawProduct(const CublasLtProduct& p, std::int64_t x_ld) {
    EXPECT_EQ(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              CUBLAS_STATUS_SUCCESS);
    const cublasOperation_t op = CUBLAS_OP_T;
    EXPECT_EQ(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &op, sizeof(op)),
              CUBLAS_STATUS_SUCCESS);
    const auto size = [](std::int64_t n) { return static_cast<std::uint64_t>(n); };
    (void)cublasLtMatrixLayoutCreate(&w, CUDA_R_32F, size(p.cols), size(p.outputs), p.w_stride);
    (void)cublasLtMatrixLayoutCreate(&x, CUDA_R_32F, size(p.cols), size(p.rows), x_ld);
    (void)cublasLtMatrixLayoutCreate(&y, CUDA_R_32F, size(p.outputs), size(p.rows), p.y_stride);
  }
  ~RawProduct() {
    (void)cublasLtMatmulDescDestroy(desc);
    for (const cublasLtMatrixLayout_t layout : {w, x, y}) (void)cublasLtMatrixLayoutDestroy(layout);
  }
  RawProduct(const RawProduct&) = delete;
  RawProduct& operator=(const RawProduct&) = delete;

  // By algorithm `id`, with so many pieces of k.
  cublasStatus_t Run(cublasLtHandle_t handle, int id, std::int32_t split, const void* a,
                     const void* b, void* d, void* workspace, std::size_t workspace_bytes,
                     cudaStream_t stream) {
    cublasLtMatmulAlgo_t algo;
    EXPECT_EQ(cublasLtMatmulAlgoInit(handle, CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F,
                                     CUDA_R_32F, CUDA_R_32F, id, &algo),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulAlgoConfigSetAttribute(&algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split,
                                                   sizeof(split)),
              CUBLAS_STATUS_SUCCESS);
    const float one = 1, zero = 0;
    return cublasLtMatmul(handle, desc, &one, a, w, b, x, &zero, d, y, d, y, &algo, workspace,
                          workspace_bytes, stream);
  }

  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
};

TEST_F(CublasLtStandinTest, PinnedBitsDoNot) {
  const auto device_x = Put(CublasLtType::kF32, Waves(257 * 200, 1.3f));
  const auto device_w = Put(CublasLtType::kF32, Waves(8 * 200, 0.7f));
  const auto y = *device_->Allocate(257 * 8 * sizeof(float));
  for (const std::int32_t split : {1, 3}) {
    std::vector<float> alone;
    for (const std::int64_t rows : {1, 2, 17, 33, 128, 257}) {
      SCOPED_TRACE(absl::StrCat("split=", split, " rows=", rows));
      RawProduct raw(Shape(rows, 8, 200), 200);
      ASSERT_EQ(raw.Run(handle_, 1, split, device_w->data(), device_x->data(), y->data(),
                        workspace_->data(), kWorkspaceBytes, stream_->handle()),
                CUBLAS_STATUS_SUCCESS);
      const std::vector<float> row = Get(*y, 8);
      if (alone.empty()) alone = row;
      EXPECT_EQ(row, alone);
    }
  }
}

TEST_F(CublasLtStandinTest, ChecksShapes) {
  const auto memory = *device_->Allocate(1 << 16);
  RawProduct narrow(Shape(4, 8, 32), 31);
  EXPECT_EQ(narrow.Run(handle_, 0, 1, memory->data(), memory->data(), memory->data(), nullptr, 0,
                       stream_->handle()),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublas_lt_standin::Now().last_fault, "B's leading dimension is 31, its rows 32");
  RawProduct unlike(Shape(4, 8, 32), 32);
  cublasLtMatrixLayout_t other = nullptr;
  (void)cublasLtMatrixLayoutCreate(&other, CUDA_R_32F, 33, 4, 33);
  std::swap(other, unlike.x);
  EXPECT_EQ(unlike.Run(handle_, 0, 1, memory->data(), memory->data(), memory->data(), nullptr, 0,
                       stream_->handle()),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublas_lt_standin::Now().last_fault, "A's k is 32, and B's 33");
  (void)cublasLtMatrixLayoutDestroy(other);
  const cublasOperation_t op = CUBLAS_OP_T;
  (void)cublasLtMatmulDescSetAttribute(unlike.desc, CUBLASLT_MATMUL_DESC_TRANSB, &op, sizeof(op));
  EXPECT_EQ(unlike.Run(handle_, 0, 1, memory->data(), memory->data(), memory->data(), nullptr, 0,
                       stream_->handle()),
            CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST_F(CublasLtStandinTest, ChecksTheWorkspace) {
  const auto memory = *device_->Allocate(1 << 16);
  RawProduct raw(Shape(4, 8, 32), 32);
  const std::size_t needed = 2 * 4 * 8 * sizeof(float);
  const auto run = [&](void* workspace, std::size_t bytes) {
    return raw.Run(handle_, 0, 2, memory->data(), memory->data() + 4096, memory->data() + 8192,
                   workspace, bytes, stream_->handle());
  };
  EXPECT_EQ(run(workspace_->data(), needed), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(run(workspace_->data(), needed - 1), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublas_lt_standin::Now().last_fault,
            "the workspace's size is 255, the algorithm needs 256");
  EXPECT_EQ(run(workspace_->data() + 128, needed), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublas_lt_standin::Now().last_fault,
            "the workspace's address modulo its alignment is 128, and it was to be aligned to 256");
  std::vector<float> host(1024);
  EXPECT_EQ(run(host.data(), needed), CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(CublasLtStandinTest, ChecksBuffers) {
  const CublasLtProduct p = Shape(3, 4, 16);
  Matrices m = Make(p);
  CublasLtPlan* plan = nullptr;
  ASSERT_EQ(lt_->plan_create(handle_, p, kWorkspaceBytes, &plan), kCublasSuccess);
  const auto run = [&](const std::byte* x, std::byte* y) {
    return lt_->multiply(handle_, plan, x, m.w->data(), nullptr, reinterpret_cast<float*>(y),
                         workspace_->data(), kWorkspaceBytes, stream_->handle());
  };
  EXPECT_EQ(run(m.x->data(), m.y->data()), kCublasSuccess);
  EXPECT_EQ(run(m.x->data() + 8, m.y->data()), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublas_lt_standin::Now().last_fault,
            "B's address modulo its alignment is 8, and it was to be aligned to 16");
  alignas(16) float host[12] = {};
  EXPECT_EQ(run(m.x->data(), reinterpret_cast<std::byte*>(host)), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublas_lt_standin::Now().last_fault,
            "D's 48 bytes are not in one piece of device memory");
  lt_->plan_destroy(plan);
  CublasLtProduct biased = p;
  biased.bias = true;
  ASSERT_EQ(lt_->plan_create(handle_, biased, kWorkspaceBytes, &plan), kCublasSuccess);
  const auto* const bias = reinterpret_cast<const float*>(m.bias->data());
  EXPECT_EQ(lt_->multiply(handle_, plan, m.x->data(), m.w->data(), bias + 1,
                          reinterpret_cast<float*>(m.y->data()), workspace_->data(),
                          kWorkspaceBytes, stream_->handle()),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublas_lt_standin::Now().last_fault,
            "the bias's address modulo its alignment is 4, and it was to be aligned to 16");
  lt_->plan_destroy(plan);
}

TEST_F(CublasLtStandinTest, MayKnowNoWayOrFail) {
  const CublasLtProduct p = Shape(3, 4, 16);
  const Matrices m = Make(p);
  cublas_lt_standin::Set({.no_heuristic = true});
  EXPECT_EQ(Run(p, m), kCublasNotSupported);
  for (const int refused : {kCublasAllocFailed, kCublasInvalidValue, kCublasNotSupported}) {
    const std::int64_t before = cublas_lt_standin::Now().products;
    cublas_lt_standin::Set({.refused = refused});
    EXPECT_EQ(Run(p, m), refused);
    EXPECT_EQ(cublas_lt_standin::Now().products, before);
  }
  cublas_lt_standin::Set({.execution_failed = true});
  const int status = Run(p, m);
  EXPECT_STREQ(lt_->get_status_name(status), "CUBLAS_STATUS_EXECUTION_FAILED");
  cublas_lt_standin::Set({});
  EXPECT_EQ(Run(p, m), kCublasSuccess);
}

TEST_F(CublasLtStandinTest, IsCaptured) {
  const CublasLtProduct p = Shape(3, 4, 16);
  Matrices m = Make(p);
  CublasLtPlan* plan = nullptr;
  ASSERT_EQ(lt_->plan_create(handle_, p, kWorkspaceBytes, &plan), kCublasSuccess);
  const std::int64_t before = cublas_lt_standin::Now().products;
  const auto graph = stream_->Capture([&] {
    EXPECT_EQ(lt_->multiply(handle_, plan, m.x->data(), m.w->data(), nullptr,
                            reinterpret_cast<float*>(m.y->data()), workspace_->data(),
                            kWorkspaceBytes, stream_->handle()),
              kCublasSuccess);
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  lt_->plan_destroy(plan);  // A graph keeps what it needs.
  EXPECT_EQ(cublas_lt_standin::Now().products, before);
  stream_->Launch(**graph);
  stream_->Launch(**graph);
  CHECK_OK(stream_->Synchronize());
  EXPECT_EQ(cublas_lt_standin::Now().products, before + 2);
}

TEST_F(CublasLtStandinTest, NeedsADriver) {
  cuda_standin::Change({.driver_version = 0, .device_count_error = 35});
  CublasLtHandle handle = nullptr;
  EXPECT_STREQ(lt_->get_status_name(lt_->create(&handle)), "CUBLAS_STATUS_NOT_INITIALIZED");
  EXPECT_EQ(handle, nullptr);
  cuda_standin::Change({});
}

}  // namespace
}  // namespace penstock
