// SPDX-License-Identifier: Apache-2.0
// Random products for tests of kernels/linear.h's sums, on whatever device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

#include "base/float16.h"
#include "kernels/activations.h"
#include "kernels/packed_matrix.h"
#include "kernels/weight_format.h"

namespace penstock::kernels {

// What the numbers look like.
enum class Magnitudes {
  kUsual,
  kLargest,   // Every level, sub-scale and |q| at its largest, scales at 65504: overflows show.
  kSmallest,  // The other end of the levels, and all q = -127.
  kExtremeScales,  // f16 scales from subnormal to 65504, activation scales of every size.
};

// Where the f16 fields of a block lie, so that random bytes can be given sane scales.
inline std::vector<int> F16Offsets(WeightFormat format) {
  switch (format) {
    case WeightFormat::kQ4_0:
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ8_0:
      return {0};
    case WeightFormat::kQ4_1:
    case WeightFormat::kQ5_1:
    case WeightFormat::kQ4_K:
    case WeightFormat::kQ5_K:
      return {0, 2};
    case WeightFormat::kQ2_K:
      return {80, 82};
    case WeightFormat::kQ3_K:
      return {108};
    case WeightFormat::kQ6_K:
      return {208};
    default:
      return {};
  }
}

// A packed matrix [weight_rows, cols] and activations [rows, cols] in both forms. The same seed gives
// the same.
class RandomProduct {
 public:
  RandomProduct(WeightFormat format, std::int32_t rows, std::int32_t weight_rows, std::int32_t cols,
                Magnitudes magnitudes, std::uint32_t seed)
      : random_(seed), magnitudes_(magnitudes), rows_(rows) {
    matrix_ = {format, weight_rows, cols, nullptr};
    MakeWeights();
    MakeActivations();
  }
  RandomProduct(const RandomProduct&) = delete;
  RandomProduct& operator=(const RandomProduct&) = delete;

  std::int32_t rows() const { return rows_; }
  const PackedMatrix& matrix() const { return matrix_; }
  const Activations& x() const { return x_; }
  double LargestWeight() const {  // Its magnitude.
    double largest = 0;
    std::vector<float> row(static_cast<std::size_t>(matrix_.cols));
    for (std::int32_t n = 0; n < matrix_.rows; ++n) {
      UnpackRow(matrix_, n, row);
      for (const float w : row) largest = std::max(largest, std::abs(double{w}));
    }
    return largest;
  }

 private:
  float RandomScale() {
    switch (magnitudes_) {
      case Magnitudes::kUsual:
        return std::uniform_real_distribution<float>(-0.1f, 0.1f)(random_);
      case Magnitudes::kExtremeScales: {
        constexpr float kScales[] = {0.0f,     -0.0f, 0x1p-24f,  -0x1p-24f, 1023 * 0x1p-24f,
                                     0x1p-14f, 1.0f,  -65504.0f, 65504.0f,  0.333f};
        return kScales[random_() % std::size(kScales)];
      }
      default:
        return 65504.0f;
    }
  }

  void MakeWeights() {
    const WeightFormat format = matrix_.format;
    const WeightFormatInfo& info = Info(format);
    std::vector<std::byte> file(BytesOf(format, matrix_.rows, matrix_.cols));
    if (info.block == 1) {
      MakeFloatWeights(file);
    } else {
      FillLevels(file);
      for (std::size_t at = 0; at < file.size(); at += info.bytes) {
        if (format == WeightFormat::kQ8_0 && magnitudes_ != Magnitudes::kUsual) {
          const int level = magnitudes_ == Magnitudes::kLargest ? 127 : -128;
          std::memset(file.data() + at + 2, level, 32);
        }
        for (const int offset : F16Offsets(format)) {
          const F16 scale = ToF16(RandomScale());
          std::memcpy(file.data() + at + offset, &scale, sizeof(scale));
        }
      }
    }
    storage_.assign(PackedBytes(format, matrix_.rows, matrix_.cols) + 64, std::byte{0});
    auto* aligned = reinterpret_cast<std::byte*>(
        (reinterpret_cast<std::uintptr_t>(storage_.data()) + 63) / 64 * 64);
    PackRows(format, matrix_.rows, matrix_.cols, 0, file, aligned);
    matrix_.data = aligned;
  }

  void FillLevels(std::vector<std::byte>& file) {
    for (std::size_t at = 0; at < file.size(); at += sizeof(std::uint32_t)) {
      const std::uint32_t word = magnitudes_ == Magnitudes::kLargest    ? 0xffffffffu
                                 : magnitudes_ == Magnitudes::kSmallest ? 0u
                                                                        : random_();
      std::memcpy(file.data() + at, &word, std::min(sizeof(word), file.size() - at));
    }
  }

  void MakeFloatWeights(std::vector<std::byte>& file) {
    const std::size_t bytes = Info(matrix_.format).bytes;
    for (std::size_t at = 0; at < file.size(); at += bytes) {
      const float value = RandomScale();
      const F16 half = ToF16(value);
      const BF16 brain = ToBF16(value);
      const void* from = &value;
      if (matrix_.format == WeightFormat::kF16) from = &half;
      if (matrix_.format == WeightFormat::kBF16) from = &brain;
      std::memcpy(file.data() + at, from, bytes);
    }
  }

  void MakeActivations() {
    x_.cols = matrix_.cols;
    const std::int32_t blocks = x_.blocks();
    f32_.resize(static_cast<std::size_t>(rows_) * matrix_.cols);
    q_.resize(static_cast<std::size_t>(rows_) * blocks * 32);
    scale_.resize(static_cast<std::size_t>(rows_) * blocks);
    sum_.resize(scale_.size());
    for (float& f : f32_) f = std::normal_distribution<float>(0, 1)(random_);
    for (std::int8_t& q : q_) {
      q = magnitudes_ == Magnitudes::kLargest    ? std::int8_t{127}
          : magnitudes_ == Magnitudes::kSmallest ? std::int8_t{-127}
                                                 : static_cast<std::int8_t>(random_() % 255 - 127);
    }
    for (std::size_t b = 0; b < scale_.size(); ++b) {
      constexpr float kScales[] = {0.0f, 1.2e-38f, 1e-10f, 1.0f, 1e5f, 1e20f};
      scale_[b] = magnitudes_ == Magnitudes::kExtremeScales
                      ? kScales[random_() % std::size(kScales)]
                      : std::uniform_real_distribution<float>(0.001f, 0.1f)(random_);
      for (int c = 0; c < 32; ++c) sum_[b] += q_[b * 32 + c];
    }
    x_.f32 = f32_.data();
    x_.q = q_.data();
    x_.scale = scale_.data();
    x_.sum = sum_.data();
  }

  std::mt19937 random_;
  Magnitudes magnitudes_;
  std::int32_t rows_;
  PackedMatrix matrix_;
  std::vector<std::byte> storage_;
  std::vector<float> f32_;
  std::vector<std::int8_t> q_;
  std::vector<float> scale_;
  std::vector<std::int32_t> sum_;
  Activations x_;
};

}  // namespace penstock::kernels
