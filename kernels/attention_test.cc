// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/elementwise.h"

namespace penstock::kernels {
namespace {

struct Shape {
  std::int32_t tokens = 1;
  std::int32_t heads = 1;
  std::int32_t position = 0;
  std::int32_t window_tokens = 0;
  std::int32_t page_tokens = 32;
  std::int32_t k_dim = 64;
  std::int32_t v_dim = 64;
  KvDtype dtype = KvDtype::kF16;
  float q_size = 1;  // Largest elements.
  float k_size = 1;
  float v_size = 1;

  std::string ToString() const {
    return absl::StrCat("tokens=", tokens, " heads=", heads, " position=", position,
                        " window=", window_tokens, " page=", page_tokens, " k_dim=", k_dim,
                        " v_dim=", v_dim, " dtype=", static_cast<int>(dtype), " sizes=", q_size,
                        ",", k_size, ",", v_size);
  }
};

constexpr float kGuard = 12345.5f;

// A sequence with its pages. Keys that no token sees are NaN, so that using one shows.
class Problem {
 public:
  Problem(const Shape& shape, std::uint32_t seed) : Problem(shape, std::mt19937(seed)) {}
  Problem(const Shape& shape, std::mt19937 random)
      : Problem(
            shape,
            Random(std::size_t{1} * shape.tokens * shape.heads * shape.k_dim, shape.q_size, random),
            Random(std::size_t{1} * (shape.position + shape.tokens) * shape.k_dim, shape.k_size,
                   random),
            Random(std::size_t{1} * (shape.position + shape.tokens) * shape.v_dim, shape.v_size,
                   random)) {}
  // By q [tokens, heads, k_dim], k [position + tokens, k_dim], v [position + tokens, v_dim].
  Problem(const Shape& shape, std::vector<float> q, std::vector<float> k, std::vector<float> v)
      : shape_(shape), q_(std::move(q)), k_(std::move(k)), v_(std::move(v)) {
    const std::int32_t end = shape.position + shape.tokens;
    first_ = shape.window_tokens > 0 ? std::max(0, shape.position + 1 - shape.window_tokens) : 0;
    first_page_ = first_ / shape.page_tokens;
    layout_.page_tokens = shape.page_tokens;
    layout_.group.k_dim = shape.k_dim;
    layout_.group.v_dim = shape.v_dim;
    layout_.group.dtype = shape.dtype;
    for (std::int32_t page = first_page_; page * shape.page_tokens < end; ++page) {
      auto bytes = std::make_unique<std::byte[]>(layout_.page_bytes());
      std::memset(bytes.get(), 0xFF, layout_.page_bytes());
      for (std::int32_t i = 0; i < shape.page_tokens; ++i) {
        const std::int32_t position = page * shape.page_tokens + i;
        if (position < first_ || position >= end) continue;
        Write(bytes.get(), layout_.k_row_bytes() * i,
              layout_.k_scales_offset() + ScaleBytes(shape.dtype) * i, shape.k_dim,
              &k_[std::size_t{1} * position * shape.k_dim]);
        Write(bytes.get(), layout_.v_offset() + layout_.v_row_bytes() * i,
              layout_.v_scales_offset() + ScaleBytes(shape.dtype) * i, shape.v_dim,
              &v_[std::size_t{1} * position * shape.v_dim]);
      }
      pages_.push_back(bytes.get());
      memory_.push_back(std::move(bytes));
    }
  }

  // Tokens [begin, begin + count), writing rows of `out` [tokens, heads * v_dim + 3].
  AttentionTask Task(std::int32_t begin, std::int32_t count, std::vector<float>& out) const {
    AttentionTask task;
    task.q_token_stride = std::int64_t{shape_.heads} * shape_.k_dim;
    task.q = q_.data() + begin * task.q_token_stride;
    task.out_token_stride = OutStride();
    task.out = out.data() + kOutGuard + begin * task.out_token_stride;
    task.tokens = count;
    task.heads = shape_.heads;
    task.position = shape_.position + begin;
    task.window_tokens = shape_.window_tokens;
    task.scale = 1 / std::sqrt(static_cast<float>(shape_.k_dim));
    task.pages = pages_;
    task.first_page_position = first_page_ * shape_.page_tokens;
    task.page_tokens = shape_.page_tokens;
    task.k_dim = shape_.k_dim;
    task.v_dim = shape_.v_dim;
    task.dtype = shape_.dtype;
    return task;
  }

  // The same on pages of F32: of the values that this one's pages hold.
  Problem Widened() const {
    Shape shape = shape_;
    shape.dtype = KvDtype::kF32;
    return Problem(shape, q_, k_, v_);
  }

  std::int64_t OutStride() const { return std::int64_t{shape_.heads} * shape_.v_dim + 3; }
  std::vector<float> NewOut() const {
    return std::vector<float>(shape_.tokens * OutStride() + 2 * kOutGuard, kGuard);
  }

  std::vector<float> Run(const AttendTarget& target,
                         const std::vector<std::int32_t>& chunks) const {
    std::vector<float> out = NewOut();
    std::int32_t begin = 0;
    for (const std::int32_t count : chunks) {
      const AttentionTask task = Task(begin, count, out);
      Scratch scratch(task);
      target.attend(task, scratch.span());
      EXPECT_TRUE(scratch.Whole());
      begin += count;
    }
    return out;
  }
  std::vector<float> Run(const AttendTarget& target) const { return Run(target, {shape_.tokens}); }

  // Softmax in double, for (token, head): v_dim values.
  std::vector<double> Oracle(std::int32_t token, std::int32_t head) const {
    const std::int32_t end = shape_.position + token + 1;
    const std::int32_t begin =
        shape_.window_tokens > 0 ? std::max(0, end - shape_.window_tokens) : 0;
    const float* const q = &q_[(std::size_t{1} * token * shape_.heads + head) * shape_.k_dim];
    std::vector<double> s;
    for (std::int32_t key = begin; key < end; ++key) {
      double dot = 0;
      for (std::int32_t d = 0; d < shape_.k_dim; ++d) {
        dot += double{q[d]} * double{k_[std::size_t{1} * key * shape_.k_dim + d]};
      }
      s.push_back(dot / std::sqrt(static_cast<double>(shape_.k_dim)));
    }
    const double max = *std::max_element(s.begin(), s.end());
    double sum = 0;
    std::vector<double> o(shape_.v_dim, 0.0);
    for (std::int32_t key = begin; key < end; ++key) {
      const double p = std::exp(s[key - begin] - max);
      sum += p;
      for (std::int32_t d = 0; d < shape_.v_dim; ++d) {
        o[d] += p * double{v_[std::size_t{1} * key * shape_.v_dim + d]};
      }
    }
    for (double& x : o) x /= sum;
    return o;
  }

  // Makes the value of one key NaN.
  void SpoilValue(std::int32_t position) {
    const std::int32_t page = position / shape_.page_tokens - first_page_;
    const std::int32_t row = position % shape_.page_tokens;
    const std::vector<float> nan(shape_.v_dim, std::nanf(""));
    NarrowRow(shape_.dtype, nan.data(), shape_.v_dim,
              memory_[page].get() + layout_.v_offset() + layout_.v_row_bytes() * row,
              memory_[page].get() + layout_.v_scales_offset() + ScaleBytes(shape_.dtype) * row);
  }

  static constexpr std::int32_t kOutGuard = 16;

  // Exactly what a task asks for, aligned, with a guard behind.
  class Scratch {
   public:
    explicit Scratch(const AttentionTask& task)
        : bytes_(AttentionScratchBytes(task.tokens, task.heads, task.k_dim, task.v_dim)),
          memory_(bytes_ + 128, std::byte{0xA5}) {
      void* start = memory_.data();
      std::size_t space = memory_.size();
      start_ = static_cast<std::byte*>(std::align(64, bytes_, start, space));
    }
    std::span<std::byte> span() { return {start_, bytes_}; }
    bool Whole() const {
      return std::all_of(start_ + bytes_, start_ + bytes_ + 64,
                         [](std::byte b) { return b == std::byte{0xA5}; });
    }

   private:
    std::size_t bytes_;
    std::vector<std::byte> memory_;
    std::byte* start_;
  };

 private:
  static std::vector<float> Random(std::size_t n, float size, std::mt19937& random) {
    std::uniform_real_distribution<float> uniform(-size, size);
    std::vector<float> values(n);
    for (float& v : values) v = uniform(random);
    return values;
  }

  // Writes a row into a page, and to `row` what the kernels will see of it, for the oracle.
  void Write(std::byte* page, std::size_t at, std::size_t scale_at, std::int32_t dim, float* row) {
    NarrowRow(shape_.dtype, row, dim, page + at, page + scale_at);
    WidenRow(shape_.dtype, page + at, page + scale_at, dim, row);
  }

  Shape shape_;
  PageLayout layout_;
  std::int32_t first_ = 0;  // The first position that is seen.
  std::int32_t first_page_ = 0;
  std::vector<float> q_, k_, v_;
  std::vector<std::unique_ptr<std::byte[]>> memory_;
  std::vector<const std::byte*> pages_;
};

// The first float whose bits differ, or -1.
std::int64_t FirstDifference(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) {
      return static_cast<std::int64_t>(i);
    }
  }
  return -1;
}

template <typename T>
T Pick(std::mt19937& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

Shape RandomShape(std::mt19937& random) {
  Shape s;
  s.tokens = Pick(random, {1, 1, 1, 2, 3, 5, 8, 13, 33, 70});
  s.heads = Pick(random, {1, 2, 3, 4, 5, 6, 7, 8, 9, 16});
  s.position = Pick<std::int32_t>(random, {0, static_cast<int>(random() % 40), 255, 256, 257,
                                           static_cast<int>(random() % 700)});
  s.window_tokens = Pick<std::int32_t>(
      random, {0, 0, 0, 1, 2, 15, 16, 33, 256, 300, static_cast<int>(1 + random() % 600)});
  s.page_tokens = Pick(random, {1, 2, 3, 4, 8, 16, 24, 32, 64, 128, 512});
  s.k_dim = Pick(random, {8, 16, 24, 32, 40, 64, 64, 72, 80, 96, 128, 136, 256});
  s.v_dim = Pick(random, {8, 16, 24, 32, 40, 64, 64, 72, 80, 96, 128, 136, 256});
  s.dtype = kKvDtypes[random() % std::size(kKvDtypes)];
  return s;
}

TEST(AttentionTest, PrintsTargets) {
  for (const AttendTarget& target : AttendTargets()) std::cout << "ran: " << target.name << "\n";
  EXPECT_EQ(AttendTargets()[0].name, "scalar");
}

TEST(AttentionTest, ScalarAgreesWithDoubles) {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed);
    Shape shape = RandomShape(random);
    shape.q_size = Pick(random, {0.0f, 1.0f, 8.0f});
    shape.tokens = std::min(shape.tokens, 8);
    SCOPED_TRACE(absl::StrCat("seed=", seed, " ", shape.ToString()));
    const Problem problem(shape, seed);
    const std::vector<float> out = problem.Run(AttendTargets()[0]);
    for (std::int32_t token = 0; token < shape.tokens; ++token) {
      for (std::int32_t head = 0; head < shape.heads; ++head) {
        const std::vector<double> want = problem.Oracle(token, head);
        const float* const got =
            &out[Problem::kOutGuard + token * problem.OutStride() + head * shape.v_dim];
        for (std::int32_t d = 0; d < shape.v_dim; ++d) ASSERT_NEAR(got[d], want[d], 2e-6);
      }
    }
  }
}

TEST(AttentionTest, TargetsAgreeInEveryBit) {
  for (std::uint32_t seed = 0; seed < 250; ++seed) {
    std::mt19937 random(seed);
    Shape shape = RandomShape(random);
    shape.q_size = Pick(random, {1e-20f, 1.0f, 1.0f, 100.0f});
    shape.k_size = Pick(random, {1e-6f, 1.0f, 1.0f, 60000.0f});
    shape.v_size = Pick(random, {1e-7f, 1.0f, 1.0f, 1e6f});
    SCOPED_TRACE(absl::StrCat("seed=", seed, " ", shape.ToString()));
    const Problem problem(shape, seed);
    const std::vector<float> want = problem.Run(AttendTargets()[0]);
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_TRUE(std::isfinite(want[i]));
    for (const AttendTarget& target : AttendTargets().subspan(1)) {
      SCOPED_TRACE(absl::StrCat("target ", std::string(target.name)));
      ASSERT_EQ(FirstDifference(problem.Run(target), want), -1);
    }
  }
}

TEST(AttentionTest, ChunksGiveTheBitsOfTheWhole) {
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed);
    Shape shape = RandomShape(random);
    shape.tokens = 20 + static_cast<std::int32_t>(random() % 60);
    shape.heads = std::min(shape.heads, 8);
    SCOPED_TRACE(absl::StrCat("seed=", seed, " ", shape.ToString()));
    const Problem problem(shape, seed);
    std::vector<std::int32_t> chunks;
    for (std::int32_t left = shape.tokens; left > 0; left -= chunks.back()) {
      chunks.push_back(std::min<std::int32_t>(left, 1 + random() % 17));
    }
    for (const AttendTarget& target : AttendTargets().last(AttendTargets().size() > 1 ? 2 : 1)) {
      SCOPED_TRACE(absl::StrCat("target ", std::string(target.name)));
      const std::vector<float> want = problem.Run(target);
      ASSERT_EQ(FirstDifference(problem.Run(target, chunks), want), -1);
      const std::vector<std::int32_t> ones(shape.tokens, 1);
      ASSERT_EQ(FirstDifference(problem.Run(target, ones), want), -1);
    }
  }
}

// The same keys on pages of other sizes.
TEST(AttentionTest, PageSizeChangesNoBit) {
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kInt8}) {
    Shape shape = {.tokens = 9, .heads = 3, .position = 600, .dtype = dtype};
    const std::vector<float> want = Problem(shape, 7).Run(AttendTargets().back());
    for (std::int32_t page_tokens = 1; page_tokens <= 64; ++page_tokens) {
      shape.page_tokens = page_tokens;
      SCOPED_TRACE(shape.ToString());
      ASSERT_EQ(FirstDifference(Problem(shape, 7).Run(AttendTargets().back()), want), -1);
    }
  }
}

// Int8 pages have the bits of F32 pages with the same values: a level times its scale is exact, for
// every scale that there is.
TEST(AttentionTest, LevelsAreWidenedExactly) {
  for (std::uint32_t seed = 0; seed < 120; ++seed) {
    std::mt19937 random(seed);
    Shape shape = RandomShape(random);
    shape.dtype = KvDtype::kInt8;
    shape.q_size = Pick(random, {1e-20f, 1.0f, 100.0f});
    // Scales from zero and the least F16 up to the largest.
    shape.k_size = Pick(random, {0.0f, 1e-7f, 1.0f, 60000.0f, 1e7f});
    shape.v_size = Pick(random, {0.0f, 1e-7f, 1.0f, 60000.0f, 1e7f});
    SCOPED_TRACE(absl::StrCat("seed=", seed, " ", shape.ToString()));
    const Problem problem(shape, seed);
    const Problem widened = problem.Widened();
    for (const AttendTarget& target : AttendTargets()) {
      SCOPED_TRACE(absl::StrCat("target ", std::string(target.name)));
      ASSERT_EQ(FirstDifference(problem.Run(target), widened.Run(target)), -1);
    }
  }
}

TEST(AttentionTest, MergedPartitionsGiveTheBitsOfAttend) {
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    std::mt19937 random(seed);
    Shape shape = RandomShape(random);
    shape.tokens = Pick(random, {1, 2, 5, 30});
    shape.position += static_cast<std::int32_t>(random() % 800);
    SCOPED_TRACE(absl::StrCat("seed=", seed, " ", shape.ToString()));
    const Problem problem(shape, seed);
    for (const AttendTarget& target : AttendTargets()) {
      SCOPED_TRACE(absl::StrCat("target ", std::string(target.name)));
      const std::vector<float> want = problem.Run(target);
      std::vector<float> out = problem.NewOut();
      const AttentionTask task = problem.Task(0, shape.tokens, out);
      const std::int32_t begin =
          shape.window_tokens > 0
              ? std::max(0, shape.position + 1 - shape.window_tokens) / kPartitionTokens
              : 0;
      const std::int32_t partitions =
          (shape.position + shape.tokens - 1) / kPartitionTokens + 1 - begin;
      const std::size_t state = std::size_t{1} * shape.tokens * shape.heads * (2 + shape.v_dim);
      std::vector<float> states(state * partitions + 1, kGuard);
      for (std::int32_t p = 0; p < partitions; ++p) {
        Problem::Scratch scratch(task);
        target.attend_partition(task, begin + p, states.data() + state * p, scratch.span());
        ASSERT_TRUE(scratch.Whole());
      }
      ASSERT_EQ(states.back(), kGuard);
      target.merge_partitions(task, states.data(), partitions);
      ASSERT_EQ(FirstDifference(out, want), -1);
    }
  }
}

TEST(AttentionTest, PublicFunctionsRunTheBestTarget) {
  const Shape shape = {.tokens = 3, .heads = 3, .position = 300};
  const Problem problem(shape, 3);
  const std::vector<float> want = problem.Run(AttendTargets().back());
  std::vector<float> out = problem.NewOut();
  const AttentionTask task = problem.Task(0, 3, out);
  Problem::Scratch scratch(task);
  Attend(task, scratch.span());
  EXPECT_EQ(FirstDifference(out, want), -1);
  std::vector<float> states(2 * 9 * 66);
  std::fill(out.begin(), out.end(), kGuard);
  for (std::int32_t p = 0; p < 2; ++p) {
    AttendPartition(task, p, states.data() + 9 * 66 * p, scratch.span());
  }
  MergePartitions(task, states.data(), 2);
  EXPECT_EQ(FirstDifference(out, want), -1);
}

// A value that is not finite must not spread to tokens that do not see it, whatever the tile.
TEST(AttentionTest, NonFiniteValuesStayWithThoseWhoSeeThem) {
  for (const auto& [window_tokens, dtype] : {std::pair{0, KvDtype::kF32},
                                             {30, KvDtype::kF32},
                                             {0, KvDtype::kInt8},
                                             {30, KvDtype::kInt8}}) {
    const Shape shape = {
        .tokens = 40, .heads = 3, .position = 250, .window_tokens = window_tokens, .dtype = dtype};
    SCOPED_TRACE(shape.ToString());
    Problem problem(shape, 5);
    std::vector<std::vector<float>> want;
    for (const AttendTarget& target : AttendTargets()) want.push_back(problem.Run(target));
    const std::int32_t spoiled = 270;
    problem.SpoilValue(spoiled);
    for (std::size_t t = 0; t < want.size(); ++t) {
      SCOPED_TRACE(absl::StrCat("target ", std::string(AttendTargets()[t].name)));
      const std::vector<float> out = problem.Run(AttendTargets()[t]);
      for (std::int32_t token = 0; token < shape.tokens; ++token) {
        const std::int32_t position = shape.position + token;
        const bool sees =
            spoiled <= position && (window_tokens == 0 || spoiled > position - window_tokens);
        const std::int64_t i = Problem::kOutGuard + token * problem.OutStride();
        if (sees) {
          EXPECT_TRUE(std::isnan(out[i])) << token;
        } else {
          EXPECT_EQ(out[i], want[t][i]) << token;
        }
      }
    }
  }
}

TEST(AttentionTest, ScratchIsSmall) {
  EXPECT_LT(AttentionScratchBytes(64, 3, 64, 64), std::size_t{1} << 18);
  EXPECT_LT(AttentionScratchBytes(64, 4, 128, 128), std::size_t{1} << 19);
  EXPECT_LT(AttentionScratchBytes(64, 4, 256, 256), std::size_t{1} << 20);
}

}  // namespace
}  // namespace penstock::kernels
