// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear_cuda.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda_testing.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "kernels/linear_cuda_kernels.h"
#include "kernels/linear_testing.h"

namespace penstock::kernels {
namespace {

// A product in device memory.
class OnDevice {
 public:
  explicit OnDevice(const RandomProduct& product)
      : data_(Span(
            product.matrix().data,
            PackedBytes(product.matrix().format, product.matrix().rows, product.matrix().cols))),
        f32_(Span(product.x().f32, std::size_t{1} * product.rows() * product.x().cols)),
        q_(Span(product.x().q, std::size_t{1} * product.rows() * product.x().blocks() * 32)),
        scale_(Span(product.x().scale, std::size_t{1} * product.rows() * product.x().blocks())),
        sum_(Span(product.x().sum, std::size_t{1} * product.rows() * product.x().blocks())) {
    matrix_ = product.matrix();
    matrix_.data = data_.data();
    x_ = {product.x().cols, f32_.data(), q_.data(), scale_.data(), sum_.data()};
  }

  const PackedMatrix& matrix() const { return matrix_; }
  const Activations& x() const { return x_; }

 private:
  template <typename T>
  static std::span<const T> Span(const T* p, std::size_t n) {
    return {p, n};
  }

  DeviceBuffer<std::byte> data_;
  DeviceBuffer<float> f32_;
  DeviceBuffer<std::int8_t> q_;
  DeviceBuffer<float> scale_;
  DeviceBuffer<std::int32_t> sum_;
  PackedMatrix matrix_;
  Activations x_;
};

std::vector<float> OnCpu(const RandomProduct& product, MultiplyPanelsFn run) {
  const PackedMatrix& w = product.matrix();
  std::vector<float> y(std::size_t{1} * product.rows() * w.rows);
  run(w, product.x(), product.rows(), 0, (w.rows + kPanelRows - 1) / kPanelRows, y.data(), w.rows);
  return y;
}
std::vector<float> Scalar(const RandomProduct& product) {
  return OnCpu(product, MultiplyPanelsTargets().front().run);
}

void CheckProduct(const RandomProduct& product, const std::vector<float>& want) {
  const OnDevice device(product);
  DeviceBuffer<float> y(want.size());
  const PackedMatrix w = device.matrix();
  const LinearOutput output = {&w, nullptr, y.data()};
  ASSERT_TRUE(Ran(LinearCuda({&output, 1}, device.x(), product.rows(), nullptr)));
  ASSERT_NO_FATAL_FAILURE(ExpectSameBits(want, y.Get()));
}

class LinearCudaFormatTest : public testing::TestWithParam<WeightFormat> {
 protected:
  std::int32_t block() const { return Info(GetParam()).block; }
};

TEST_P(LinearCudaFormatTest, HasTheBitsOfTheScalar) {
  struct Shape {
    std::int32_t rows, weight_rows, blocks;
  };
  // Around the few rows' kernels and their rounds, and around the tiles.
  for (const Shape& s :
       {Shape{1, 1, 1}, Shape{1, 40, 11}, Shape{2, 16, 3}, Shape{3, 23, 2}, Shape{3, 16, 4},
        Shape{5, 17, 9}, Shape{8, 16, 1}, Shape{9, 33, 5}, Shape{17, 130, 2}, Shape{165, 24, 1}}) {
    // Of floats once a multiple of 4, which travels in 16 bytes, but of no stage.
    const std::int32_t cols = block() == 1 ? 37 * s.blocks : block() * s.blocks;
    SCOPED_TRACE(absl::StrCat("rows=", s.rows, " weight rows=", s.weight_rows, " cols=", cols));
    const RandomProduct product(GetParam(), s.rows, s.weight_rows, cols, Magnitudes::kUsual, 1);
    ASSERT_NO_FATAL_FAILURE(CheckProduct(product, Scalar(product)));
  }
}

TEST_P(LinearCudaFormatTest, ExtremesDoNotOverflow) {
  for (const Magnitudes magnitudes :
       {Magnitudes::kLargest, Magnitudes::kSmallest, Magnitudes::kExtremeScales}) {
    for (const std::int32_t rows : {1, 2, 4, 7, 10}) {
      const std::int32_t cols = block() == 1 ? 65 : std::max(block(), 64);
      SCOPED_TRACE(absl::StrCat("rows=", rows, " magnitudes=", static_cast<int>(magnitudes)));
      const RandomProduct product(GetParam(), rows, 35, cols, magnitudes, 3);
      ASSERT_NO_FATAL_FAILURE(CheckProduct(product, Scalar(product)));
    }
  }
}

TEST_P(LinearCudaFormatTest, AllSchedulesGiveTheSame) {
  for (const std::int32_t rows : {1, 8, 10, 20}) {
    // Three rounds of units for few rows, more units than stages for the others.
    const std::int32_t units = rows <= linear_cuda::kFewRowsMax     ? 9
                               : rows <= linear_cuda::kGroupRowsMax ? 6
                                                                    : 2;
    const std::int32_t cols = block() == 1 ? 330 : 256 * units;
    const RandomProduct product(GetParam(), rows, 16, cols, Magnitudes::kUsual, 4);
    const std::vector<float> want = Scalar(product);
    ForEachSchedule([&] { ASSERT_NO_FATAL_FAILURE(CheckProduct(product, want)); });
  }
}

// Which kernel computes a row does not show.
TEST_P(LinearCudaFormatTest, EveryKernelGivesTheSame) {
  using Kernel = cudaError_t (*)(linear_cuda::Products, cudaStream_t);
  for (const std::int32_t rows : {1, 2, 4, 8, 10, 35, 130}) {
    SCOPED_TRACE(absl::StrCat("rows=", rows));
    const std::int32_t cols = rows > 100 ? 256 : 768;
    const RandomProduct product(GetParam(), rows, 20, cols, Magnitudes::kUsual, 6);
    const OnDevice device(product);
    const std::vector<float> want = Scalar(product);
    DeviceBuffer<float> y(want.size());
    linear_cuda::Products products = {};
    products.product[0] = {device.matrix().data, nullptr, y.data(), 20, 0, false};
    products.count = 1;
    products.format = GetParam();
    products.cols = cols;
    products.rows = rows;
    products.f32 = device.x().f32;
    products.q = device.x().q;
    products.scale = device.x().scale;
    products.sum = device.x().sum;
    std::vector<Kernel> kernels = {linear_cuda::FloatFewRows, linear_cuda::FloatManyRows};
    if (block() > 1)
      kernels = {linear_cuda::GroupRows, linear_cuda::ManyRows, linear_cuda::ManyRowsWide};
    if (block() > 1 && rows <= linear_cuda::kFewRowsMax) kernels.push_back(linear_cuda::FewRows);
    for (const Kernel kernel : kernels) {
      y.Poison();
      ASSERT_TRUE(Ran(kernel(products, nullptr)));
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(want, y.Get()));
    }
  }
}

#if defined(PENSTOCK_REAL_GPU)
TEST_P(LinearCudaFormatTest, LargeShapesHaveTheBitsOfTheCpu) {
  struct Shape {
    std::int32_t rows, weight_rows, cols;
  };
  for (const Shape& s :
       {Shape{1, 4096, 4096}, Shape{2, 1000, 4096}, Shape{4, 1000, 14336}, Shape{7, 520, 4096},
        Shape{8, 520, 14336}, Shape{17, 520, 4096}, Shape{33, 520, 4096}, Shape{128, 1024, 2048},
        Shape{257, 520, 2048}, Shape{1024, 2000, 1024}, Shape{8, 8192, 512}}) {
    SCOPED_TRACE(absl::StrCat("rows=", s.rows, " weight rows=", s.weight_rows, " cols=", s.cols));
    const RandomProduct product(GetParam(), s.rows, s.weight_rows, s.cols, Magnitudes::kUsual, 8);
    ASSERT_NO_FATAL_FAILURE(
        CheckProduct(product, OnCpu(product, MultiplyPanelsTargets().back().run)));
  }
}
#endif

INSTANTIATE_TEST_SUITE_P(Formats, LinearCudaFormatTest, testing::ValuesIn(kWeightFormats),
                         [](const auto& param) { return std::string(Info(param.param).name); });

std::vector<float> RandomFloats(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(n);
  for (float& v : values) v = std::normal_distribution<float>(0, 1)(random);
  return values;
}

// Q, K and V: two formats, a bias, a residual; the same x.
TEST(LinearCudaTest, SeveralOutputsOfOneInput) {
  for (const std::int32_t rows : {1, 3, 13, 20}) {
    SCOPED_TRACE(absl::StrCat("rows=", rows));
    const RandomProduct q(WeightFormat::kQ4_K, rows, 50, 512, Magnitudes::kUsual, 11);
    const RandomProduct k(WeightFormat::kQ6_K, rows, 17, 512, Magnitudes::kUsual, 12);
    const RandomProduct v(WeightFormat::kQ4_K, rows, 32, 512, Magnitudes::kUsual, 13);
    const RandomProduct* products[] = {&q, &k, &v};
    const OnDevice device_q(q), device_k(k), device_v(v);
    std::vector<std::vector<float>> want;
    std::vector<std::unique_ptr<DeviceBuffer<float>>> bias, y;
    std::vector<LinearOutput> outputs;
    const PackedMatrix matrices[] = {device_q.matrix(), device_k.matrix(), device_v.matrix()};
    for (std::size_t i = 0; i < 3; ++i) {
      const PackedMatrix& w = products[i]->matrix();
      want.emplace_back(std::size_t{1} * rows * w.rows);
      MultiplyPanelsTargets().front().run(w, q.x(), rows, 0, (w.rows + 15) / 16, want[i].data(),
                                          w.rows);
      const std::vector<float> bias_values = RandomFloats(static_cast<std::size_t>(w.rows), 20);
      const std::vector<float> before = RandomFloats(want[i].size(), 21);
      bias.push_back(std::make_unique<DeviceBuffer<float>>(bias_values));
      y.push_back(std::make_unique<DeviceBuffer<float>>(before));
      const bool has_bias = i != 1;
      const bool add = i != 0;
      for (std::size_t at = 0; at < want[i].size(); ++at) {
        if (has_bias) want[i][at] += bias_values[at % static_cast<std::size_t>(w.rows)];
        if (add) want[i][at] = before[at] + want[i][at];
      }
      outputs.push_back({&matrices[i], has_bias ? bias[i]->data() : nullptr, y[i]->data(), add});
    }
    ASSERT_TRUE(Ran(LinearCuda(outputs, device_q.x(), rows, nullptr)));
    for (std::size_t i = 0; i < 3; ++i) {
      SCOPED_TRACE(absl::StrCat("output ", i));
      ASSERT_NO_FATAL_FAILURE(ExpectSameBits(want[i], y[i]->Get()));
    }
  }
}

TEST(LinearCudaTest, GatedLinearIsTheCpus) {
  struct Case {
    WeightFormat format;
    std::int32_t rows, weight_rows;
    Activation activation;
  };
  for (const Case& c : {Case{WeightFormat::kQ4_K, 1, 96, Activation::kSilu},
                        Case{WeightFormat::kQ4_K, 20, 48, Activation::kGeluTanh},
                        Case{WeightFormat::kQ8_0, 3, 40, Activation::kGeluTanh},
                        Case{WeightFormat::kF16, 9, 33, Activation::kSilu}}) {
    SCOPED_TRACE(absl::StrCat("format ", static_cast<int>(c.format), " rows=", c.rows));
    const RandomProduct gate(c.format, c.rows, c.weight_rows, 256, Magnitudes::kUsual, 31);
    const RandomProduct up(c.format, c.rows, c.weight_rows, 256, Magnitudes::kUsual, 32);
    const std::size_t n = std::size_t{1} * c.rows * c.weight_rows;
    std::vector<float> gated(n), upper(n);
    const std::int32_t panels = (c.weight_rows + 15) / 16;
    MultiplyPanels(gate.matrix(), gate.x(), c.rows, 0, panels, gated.data(), c.weight_rows);
    MultiplyPanels(up.matrix(), gate.x(), c.rows, 0, panels, upper.data(), c.weight_rows);
    GatedActivation(c.activation, upper.data(), static_cast<std::int32_t>(n), gated.data());
    const Activations shape = {c.weight_rows, nullptr, nullptr, nullptr, nullptr};
    const std::size_t blocks = std::size_t{1} * c.rows * shape.blocks();
    std::vector<std::int8_t> q(blocks * 32);
    std::vector<float> scale(blocks);
    std::vector<std::int32_t> sum(blocks);
    for (std::int32_t r = 0; r < c.rows; ++r) {
      const std::int64_t block = std::int64_t{r} * shape.blocks();
      QuantizeRow(gated.data() + std::int64_t{r} * c.weight_rows, c.weight_rows,
                  q.data() + block * 32, scale.data() + block, sum.data() + block);
    }
    const OnDevice device_gate(gate), device_up(up);
    DeviceBuffer<float> f32(n), device_scale(blocks), scratch(2 * n);
    DeviceBuffer<std::int8_t> device_q(blocks * 32);
    DeviceBuffer<std::int32_t> device_sum(blocks);
    const Activations out = {c.weight_rows, f32.data(), device_q.data(), device_scale.data(),
                             device_sum.data()};
    ASSERT_TRUE(
        Ran(GatedLinearCuda(device_gate.x(), c.rows, device_gate.matrix(), device_up.matrix(),
                            c.activation, out, scratch.data(), nullptr)));
    ASSERT_NO_FATAL_FAILURE(ExpectSameBits(gated, f32.Get()));
    ASSERT_NO_FATAL_FAILURE(ExpectSameBits(scale, device_scale.Get()));
    EXPECT_EQ(q, device_q.Get());
    EXPECT_EQ(sum, device_sum.Get());
  }
}

TEST(LinearCudaTest, RefusesShapesThatDoNotFit) {
  const PackedMatrix w = {WeightFormat::kQ8_0, 16, 64, nullptr};
  const LinearOutput output = {&w, nullptr, nullptr};
  Activations x;
  x.cols = 32;
  EXPECT_EQ(LinearCuda({&output, 1}, x, 1, nullptr), cudaErrorInvalidValue);
  x.cols = 64;
  EXPECT_EQ(LinearCuda({&output, 1}, x, 1, nullptr), cudaErrorInvalidValue) << "no int8 form";
  EXPECT_EQ(LinearCuda({&output, 1}, x, -1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(LinearCuda({&output, 1}, x, 0, nullptr), cudaSuccess);
  const std::vector<LinearOutput> many(kCudaLinearOutputsMax + 1, output);
  EXPECT_EQ(LinearCuda(many, x, 0, nullptr), cudaErrorInvalidValue);
  Activations out;
  out.cols = 17;
  EXPECT_EQ(GatedLinearCuda(x, 1, w, w, Activation::kSilu, out, nullptr, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace penstock::kernels
