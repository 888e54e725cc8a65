// SPDX-License-Identifier: Apache-2.0
// Products over the stand-in for cuBLASLt, against sums in double of what they are given.
#include "kernels/fast_products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/float16.h"
#include "device/cublas_lt_standin.h"
#include "device/cuda_standin.h"
#include "kernels/dense_format.h"
#include "kernels/linear_testing.h"

namespace penstock::kernels {
namespace {

double Rounded(WeightFormat dense, float value) {
  if (dense == WeightFormat::kF16) return ToFloat(ToF16Saturated(value));
  if (dense == WeightFormat::kBF16) return ToFloat(ToBF16(value));
  return value;
}

class FastProductsTest : public testing::Test {
 protected:
  FastProductsTest() {
    cublas_lt_standin::Set({});
    cuda_standin::Reset({});
    const CudaPlugin& plugin = *penstock_cuda_plugin();
    device_ = CudaDevice::Make(plugin, {.threads = 1}).value();
    stream_ = std::make_unique<CudaStream>(plugin, device_->gpu());
    launches_ = std::make_unique<CudaLaunches>(*plugin.kernels, *stream_);
  }
  ~FastProductsTest() override {
    memory_.clear();
    stream_.reset();
    device_.reset();
    EXPECT_EQ(cuda_standin::Now().device_bytes, 0);
    EXPECT_EQ(cublas_lt_standin::Now().handles, 0);
    EXPECT_EQ(cublas_lt_standin::Now().objects, 0);
    cublas_lt_standin::Set({});
  }

  std::unique_ptr<FastProducts> Make(std::size_t room_bytes = FastProducts::kRoomBytes,
                                     std::size_t plans_max = FastProducts::kPlansMax) {
    return FastProducts::Make(*device_, *stream_, *launches_, room_bytes, plans_max).value();
  }
  template <typename T>
  T* Put(const T* from, std::size_t n) {
    const std::size_t bytes = n * sizeof(T);
    memory_.push_back(device_->Allocate(bytes).value());
    stream_->Copy(memory_.back()->data(), reinterpret_cast<const std::byte*>(from), bytes);
    return reinterpret_cast<T*>(memory_.back()->data());
  }
  PackedMatrix Put(const PackedMatrix& matrix) {
    PackedMatrix there = matrix;
    there.data = Put(matrix.data, PackedBytes(matrix.format, matrix.rows, matrix.cols));
    return there;
  }
  // In the form that the matrix takes.
  Activations Put(const RandomProduct& product) {
    const Activations& x = product.x();
    const auto rows = static_cast<std::size_t>(product.rows());
    Activations there = {.cols = x.cols};
    if (!product.matrix().takes_int8()) {
      there.f32 = Put(x.f32, rows * static_cast<std::size_t>(x.cols));
      return there;
    }
    const std::size_t blocks = rows * static_cast<std::size_t>(x.blocks());
    there.q = Put(x.q, blocks * 32);
    there.scale = Put(x.scale, blocks);
    there.sum = Put(x.sum, blocks);
    return there;
  }
  std::vector<float> Get(const float* from, std::size_t n) {
    std::vector<float> values(n);
    stream_->Copy(reinterpret_cast<std::byte*>(values.data()),
                  reinterpret_cast<const std::byte*>(from), n * sizeof(float));
    EXPECT_TRUE(stream_->Synchronize().ok()) << cublas_lt_standin::Now().last_fault;
    return values;
  }
  // That y is x * w^T, plus what was there and the bias where it is not null; sums of floats may be off
  // by an ulp per term.
  void ExpectProduct(const RandomProduct& product, const std::vector<float>& before,
                     const float* bias, const std::vector<float>& y) {
    const PackedMatrix& matrix = product.matrix();
    const WeightFormat dense = DenseFormat(matrix.format);
    const auto cols = static_cast<std::size_t>(matrix.cols);
    std::vector<float> weights(cols);
    for (std::int32_t n = 0; n < matrix.rows; ++n) {
      UnpackRow(matrix, n, weights);
      for (std::int32_t r = 0; r < product.rows(); ++r) {
        const auto at = static_cast<std::size_t>(r * matrix.rows + n);
        double want = before.empty() ? 0 : before[at];
        if (bias != nullptr) want += bias[n];
        double sizes = std::abs(want);
        for (std::size_t k = 0; k < cols; ++k) {
          const double term = Rounded(dense, Value(product, r, static_cast<std::int32_t>(k))) *
                              Rounded(dense, weights[k]);
          want += term;
          sizes += std::abs(term);
        }
        ASSERT_NEAR(y[at], want, sizes * 0x1p-24 * static_cast<double>(cols + 2))
            << "row " << r << " output " << n;
      }
    }
  }
  static float Value(const RandomProduct& product, std::int32_t row, std::int32_t col) {
    const Activations& x = product.x();
    if (!product.matrix().takes_int8()) return x.f32[row * x.cols + col];
    const std::int32_t block = row * x.blocks() + col / 32;
    return static_cast<float>(x.q[block * 32 + col % 32]) * x.scale[block];
  }

  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<CudaStream> stream_;
  std::unique_ptr<CudaLaunches> launches_;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
};

// In one piece, and in several of 16 and 32 rows.
TEST_F(FastProductsTest, EveryFormat) {
  for (const std::size_t room : {FastProducts::kRoomBytes, std::size_t{16} * 256 * 4}) {
    const auto fast = Make(room);
    for (const WeightFormat format : kWeightFormats) {
      for (const bool plus : {false, true}) {
        SCOPED_TRACE(absl::StrCat(std::string(Info(format).name), " room=", room, " plus=", plus));
        const RandomProduct product(format, FastProducts::kInt8RowsMin, 70, 256, Magnitudes::kUsual,
                                    3);
        const PackedMatrix matrix = Put(product.matrix());
        std::vector<float> before(static_cast<std::size_t>(product.rows()) * 70);
        for (std::size_t i = 0; i < before.size(); ++i) before[i] = static_cast<float>(i % 13);
        std::vector<float> bias(70);
        for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i) / 7;
        float* const y = Put(before.data(), before.size());
        const LinearOutput output = {&matrix, plus ? Put(bias.data(), bias.size()) : nullptr, y,
                                     plus};
        const std::int64_t products = cublas_lt_standin::Now().products;
        ASSERT_TRUE(fast->Multiply(Put(product), product.rows(), {&output, 1}).empty());
        ExpectProduct(product, plus ? before : std::vector<float>(), plus ? bias.data() : nullptr,
                      Get(y, before.size()));
        EXPECT_GT(cublas_lt_standin::Now().products, products);
        memory_.clear();
      }
    }
  }
}

TEST_F(FastProductsTest, FewRowsAndWhatHasNoWayAreLeft) {
  const auto fast = Make();
  const RandomProduct floats(WeightFormat::kF16, FastProducts::kInt8RowsMin, 20, 64,
                             Magnitudes::kUsual, 1);
  const RandomProduct levels(WeightFormat::kQ4_0, FastProducts::kInt8RowsMin, 20, 64,
                             Magnitudes::kUsual, 1);
  const PackedMatrix half = Put(floats.matrix()), four = Put(levels.matrix());
  Activations x = Put(floats);
  const Activations int8 = Put(levels);
  x.q = int8.q;
  x.scale = int8.scale;
  x.sum = int8.sum;
  std::vector<float> room(2 * 20 * FastProducts::kInt8RowsMin);
  float* const y = Put(room.data(), room.size());
  const LinearOutput both[] = {{.matrix = &half, .y = y},
                               {.matrix = &four, .y = y + room.size() / 2}};
  const auto left = [&](std::int32_t rows) {
    std::vector<const PackedMatrix*> matrices;
    for (const LinearOutput& output : fast->Multiply(x, rows, both)) {
      matrices.push_back(output.matrix);
    }
    return matrices;
  };
  using Matrices = std::vector<const PackedMatrix*>;
  EXPECT_EQ(left(FastProducts::kFloatRowsMin - 1), (Matrices{&half, &four}));
  EXPECT_EQ(left(FastProducts::kFloatRowsMin), Matrices{&four});
  EXPECT_EQ(left(FastProducts::kInt8RowsMin - 1), Matrices{&four});
  EXPECT_EQ(left(FastProducts::kInt8RowsMin), Matrices());
  cublas_lt_standin::Set({.no_heuristic = true});
  EXPECT_EQ(left(FastProducts::kInt8RowsMin), Matrices()) << "those it knows from before";
  EXPECT_EQ(left(40), (Matrices{&half, &four}));
}

// Shapes that come again are not searched for again, until too many others came.
TEST_F(FastProductsTest, KeepsPlans) {
  constexpr std::size_t kPlans = 8;
  const auto fast = Make(FastProducts::kRoomBytes, kPlans);
  const RandomProduct product(WeightFormat::kF32, 1, 4, 8, Magnitudes::kUsual, 1);
  const PackedMatrix matrix = Put(product.matrix());
  constexpr std::int32_t kRows = FastProducts::kFloatRowsMin;
  constexpr auto kRowsMax = static_cast<std::int32_t>(kRows + kPlans);
  const std::vector<float> zeros(kRowsMax * 8);
  const Activations x = {.cols = 8, .f32 = Put(zeros.data(), zeros.size())};
  const LinearOutput output = {.matrix = &matrix, .y = Put(zeros.data(), kRowsMax * 4)};
  const auto searches = [&](std::int32_t rows) {
    const std::int64_t before = cublas_lt_standin::Now().searches;
    EXPECT_TRUE(fast->Multiply(x, rows, {&output, 1}).empty());
    return cublas_lt_standin::Now().searches - before;
  };
  EXPECT_EQ(searches(kRows), 1);
  EXPECT_EQ(searches(kRows), 0);
  for (std::int32_t rows = kRows + 1; rows < kRowsMax; ++rows) EXPECT_EQ(searches(rows), 1);
  EXPECT_EQ(searches(kRows), 0);
  EXPECT_EQ(searches(kRowsMax), 1);
  EXPECT_EQ(searches(kRows), 0);
  EXPECT_EQ(searches(kRows + 1), 1) << "used longest ago";
}

TEST_F(FastProductsTest, AFailureIsTheStreams) {
  {
    const auto fast = Make();
    const RandomProduct product(WeightFormat::kBF16, 40, 20, 64, Magnitudes::kUsual, 1);
    const PackedMatrix matrix = Put(product.matrix());
    std::vector<float> y(40 * 20);
    const LinearOutput output = {.matrix = &matrix, .y = Put(y.data(), y.size())};
    cublas_lt_standin::Set({.execution_failed = true});
    EXPECT_TRUE(fast->Multiply(Put(product), 40, {&output, 1}).empty());
    EXPECT_NE(stream_->Synchronize().message().find(
                  "cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED (13)"),
              absl::string_view::npos)
        << stream_->Synchronize();
  }
}

// By the host, before anything is in the stream: the exact kernel does it, then and later.
TEST_F(FastProductsTest, WhatIsRefusedIsLeft) {
  const auto fast = Make(std::size_t{16} * 64 * 2);  // Two pieces.
  const RandomProduct product(WeightFormat::kBF16, 40, 20, 64, Magnitudes::kUsual, 1);
  const PackedMatrix matrix = Put(product.matrix());
  const Activations x = Put(product);
  const std::vector<float> ones(40 * 20, 1);
  const LinearOutput output = {.matrix = &matrix, .y = Put(ones.data(), ones.size()), .add = true};
  std::int32_t rows = 40;  // Another plan for each.
  for (const int status : {kCublasAllocFailed, kCublasInvalidValue, kCublasNotSupported}) {
    cublas_lt_standin::Set({.refused = status});
    EXPECT_EQ(fast->Multiply(x, rows, {&output, 1}).size(), std::size_t{1}) << status;
    cublas_lt_standin::Set({});
    EXPECT_EQ(fast->Multiply(x, rows, {&output, 1}).size(), std::size_t{1}) << "the plan is gone";
    EXPECT_EQ(Get(output.y, ones.size()), ones) << "something was added";
    --rows;
  }
  EXPECT_TRUE(fast->Multiply(x, rows, {&output, 1}).empty());
  cublas_lt_standin::Set({.refused = kCublasNotSupported});
  const auto graph = stream_->Capture([&] {
    EXPECT_TRUE(fast->Multiply(x, rows, {&output, 1}).empty());
  });
  EXPECT_FALSE(graph.ok()) << "has not what its key says";
  cublas_lt_standin::Set({});
  EXPECT_TRUE(fast->Multiply(x, rows, {&output, 1}).empty());
  EXPECT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
}

TEST_F(FastProductsTest, WithoutTheLibraryThereIsNone) {
  CudaPlugin without = *penstock_cuda_plugin();
  without.cublas_lt = nullptr;
  const auto device = CudaDevice::Make(without, {.threads = 1}).value();
  const auto made = FastProducts::Make(*device, *stream_, *launches_);
  EXPECT_TRUE(absl::IsUnimplemented(made.status()));
  EXPECT_EQ(made.status().message(),
            "numerics fast need cuBLASLt, and there is none: the plug-in looks for none");
  cuda_standin::Change({.memory_bytes = FastProducts::kWorkspaceBytes - 1});
  EXPECT_EQ(FastProducts::Make(*device_, *stream_, *launches_).status().code(),
            absl::StatusCode::kResourceExhausted);
  cuda_standin::Change({});
}

}  // namespace
}  // namespace penstock::kernels
