// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling_cuda.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda_testing.h"
#include "kernels/draw_testing.h"

namespace penstock::kernels {
namespace {

#if defined(PENSTOCK_REAL_GPU)
constexpr std::size_t kVocabMost = 128256;
#else
constexpr std::size_t kVocabMost = 9001;  // Three blocks of threads for a row.
#endif

// Several rows of one vocabulary and draws from them, in one call.
class Batch {
 public:
  explicit Batch(std::size_t vocab) : vocab_(vocab) {}

  std::int32_t AddRow(const DrawRow& row) {
    rows_.push_back(row);
    logits_.insert(logits_.end(), row.logits.begin(), row.logits.end());
    return static_cast<std::int32_t>(rows_.size()) - 1;
  }
  void AddDraw(std::int32_t row, const DrawSpec& spec, const char* name) {
    draws_.push_back({row, spec});
    names_.push_back(absl::StrCat(rows_[static_cast<std::size_t>(row)].name, " ", name));
    want_.push_back(SlowDraw(rows_[static_cast<std::size_t>(row)].logits, spec));
  }

  void ExpectSlowDraws() const {
    SCOPED_TRACE(absl::StrCat("vocab=", vocab_));
    const auto vocab = static_cast<std::int32_t>(vocab_);
    const DrawKinds kinds = KindsOf(draws_);
    EXPECT_LE(DrawScratchBytesCuda(vocab, kinds) + draws_.size() * sizeof(Drawn),
              DrawBytesMax(vocab, kinds.count));
    const DeviceBuffer<float> logits(logits_);
    const DeviceBuffer<RowDraw> draws(draws_);
    DeviceBuffer<Drawn> out(draws_.size());
    DeviceBuffer<std::byte> scratch(DrawScratchBytesCuda(vocab, kinds));
    ForEachSchedule([&] {
      out.Poison();
      scratch.Poison();
      ASSERT_TRUE(Ran(static_cast<cudaError_t>(DrawCuda(logits.data(), vocab, draws.data(), kinds,
                                                        out.data(), scratch.data(), nullptr))));
      const std::vector<Drawn> got = out.Get();
      for (std::size_t i = 0; i < got.size() && !testing::Test::HasFailure(); ++i) {
        SCOPED_TRACE(absl::StrCat("draw ", i, ": ", names_[i]));
        ExpectSame(want_[i], got[i]);
      }
    });
  }

 private:
  const std::size_t vocab_;
  std::vector<DrawRow> rows_;
  std::vector<float> logits_;
  std::vector<RowDraw> draws_;
  std::vector<std::string> names_;
  std::vector<Drawn> want_;
};

TEST(SamplingCudaTest, EveryCaseInOneBatch) {
  for (const std::size_t vocab : {1, 513}) {
    Batch batch(vocab);
    for (const DrawRow& row : DrawRows(vocab, vocab)) {
      const std::int32_t at = batch.AddRow(row);
      for (const DrawCase& c : DrawCases()) batch.AddDraw(at, c.spec, c.name);
    }
    batch.ExpectSlowDraws();
    if (HasFailure()) return;
  }
}

// What no draw asks for is not launched.
TEST(SamplingCudaTest, EveryCaseAlone) {
  const std::vector<DrawRow> rows = DrawRows(700, 1);
  for (const DrawCase& c : DrawCases()) {
    Batch batch(700);
    (void)batch.AddRow(rows[0]);
    (void)batch.AddRow(rows[1]);
    batch.AddDraw(1, c.spec, c.name);
    batch.ExpectSlowDraws();
    if (HasFailure()) return;
  }
}

TEST(SamplingCudaTest, RowsOfSeveralBlocks) {
  Batch batch(kVocabMost);
  for (const DrawRow& row : DrawRows(kVocabMost, 3)) {
    const std::int32_t at = batch.AddRow(row);
    for (const DrawCase& c : DrawCases()) {
      const bool is_most = c.spec.top_logits > 0 || (c.spec.top_k > 0 && c.spec.top_p < 1);
      if (is_most || c.spec.temperature > 50) batch.AddDraw(at, c.spec, c.name);
    }
  }
  batch.ExpectSlowDraws();
}

TEST(SamplingCudaTest, RandomSpecs) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed=", seed));
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(0, 1);
    const std::size_t vocab = 1 + random() % 2000;
    Batch batch(vocab);
    for (const DrawRow& row : DrawRows(vocab, seed)) {
      const std::int32_t at = batch.AddRow(row);
      const auto chance = [&] { return random() % 2 == 0; };
      const DrawSpec spec = {.temperature = 0.01 + 3 * uniform(random),
                             .top_k = chance() ? static_cast<std::int32_t>(random() % 900) : 0,
                             .top_p = chance() ? 1 - uniform(random) : 1,
                             .min_p = chance() ? uniform(random) / 10 : 0,
                             .uniform = uniform(random),
                             .top_logits = static_cast<std::int32_t>(random() % 22) - 1};
      batch.AddDraw(at, spec, "random");
    }
    batch.ExpectSlowDraws();
    if (HasFailure()) return;
  }
}

TEST(SamplingCudaTest, RefusesWhatIsNoRow) {
  const DrawKinds kinds = {.count = 1};
  for (const std::int32_t vocab : {0, -1, kDrawVocabMax + 1}) {
    EXPECT_EQ(DrawCuda(nullptr, vocab, nullptr, kinds, nullptr, nullptr, nullptr),
              cudaErrorInvalidValue);
  }
  EXPECT_EQ(DrawCuda(nullptr, 10, nullptr, {.count = -1}, nullptr, nullptr, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(DrawCuda(nullptr, 10, nullptr, {}, nullptr, nullptr, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace penstock::kernels
