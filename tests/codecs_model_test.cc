// SPDX-License-Identifier: Apache-2.0
// Codecs on the KV that a real model makes of a real text (this repository's licence): what they
// gain, and what attending to their copies costs.
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "base/file.h"
#include "cli/quality_measure.h"
#include "gtest/gtest.h"

namespace penstock::tests {
namespace {

using kvstore::CodecId;

struct Want {
  CodecId id;
  double ratio_min, kl_max;
};

void ExpectQuality(KvDtype dtype, const std::vector<Want>& wants) {
  const std::string path = PENSTOCK_SOURCE_DIR "/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) {
    GTEST_SKIP() << "no model file; penstock model get smollm2 fetches it";
  }
  const auto text = ReadFile(PENSTOCK_SOURCE_DIR "/LICENSE", std::size_t{1} << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  cli::QualityOptions quality;
  quality.prompt_tokens = 512;
  quality.scored_tokens = 256;
  quality.needles = 0;
  for (const Want& want : wants) quality.codecs.push_back(want.id);
  const auto model = engine::LocalModel::Open(path);
  ASSERT_TRUE(model.ok()) << model.status();
  engine::LocalModel::Options options;
  options.threads = 2;
  options.memory.kv_dtype = dtype;
  // What rounding them adds to any change of the cache is more than what int8 pages cost.
  options.float_activations = dtype == KvDtype::kInt8;
  const absl::Status loaded =
      (*model)->Load(ForQuality(options, quality), [](std::size_t, std::size_t) {});
  ASSERT_TRUE(loaded.ok()) << loaded;
  const auto result = MeasureQuality(
      **model, *text, quality, [](std::string_view, std::size_t, std::size_t) { return true; });
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->against_f16.has_value(), dtype != KvDtype::kF16);
  if (dtype == KvDtype::kInt8) {
    std::printf("int8 against f16: mean KL %.2e\n", result->against_f16->mean_kl);
    EXPECT_LE(result->against_f16->mean_kl, 5e-3);
  }
  ASSERT_EQ(result->record.codecs.size(), wants.size());
  for (std::size_t i = 0; i < wants.size(); ++i) {
    const kvstore::CodecQuality& got = result->record.codecs[i];
    SCOPED_TRACE(std::string(ToString(got.codec)));
    const double ratio = 8 * static_cast<double>(BytesPerElement(dtype)) / got.bits_per_value;
    std::printf("%s %-11s ratio %.3f, mean KL %.2e\n", std::string(ToString(dtype)).c_str(),
                std::string(ToString(got.codec)).c_str(), ratio, got.mean_kl);
    EXPECT_EQ(got.codec, wants[i].id);
    EXPECT_GE(ratio, wants[i].ratio_min);
    EXPECT_LE(got.mean_kl, wants[i].kl_max);
  }
}

TEST(CodecsModelTest, F16) {
  ExpectQuality(KvDtype::kF16, {{CodecId::kRaw, 0.99, 0},
                                {CodecId::kPlanes, 1.10, 0},
                                {CodecId::kPlanesZstd, 1.13, 0},
                                {CodecId::kInt8, 1.9, 5e-3},
                                {CodecId::kK8v4, 2.4, 2e-2},
                                {CodecId::kKivi4, 3.0, 5e-2},
                                {CodecId::kAnsFine, 3.3, 1e-2},
                                {CodecId::kAnsMedium, 4.1, 2e-2},
                                {CodecId::kAnsCoarse, 5.4, 5e-2}});
}

// Int8 pages are kept as they are; what they cost is that the engine attends to them.
TEST(CodecsModelTest, Int8) { ExpectQuality(KvDtype::kInt8, {{CodecId::kRaw, 0.95, 0}}); }

TEST(CodecsModelTest, BF16) {
  ExpectQuality(KvDtype::kBF16, {{CodecId::kRaw, 0.99, 0},
                                 {CodecId::kPlanes, 1.30, 0},
                                 {CodecId::kPlanesZstd, 1.45, 0},
                                 {CodecId::kInt8, 1.9, 5e-3},
                                 {CodecId::kK8v4, 2.4, 2e-2},
                                 {CodecId::kKivi4, 3.0, 5e-2},
                                 {CodecId::kAnsFine, 3.3, 1e-2},
                                 {CodecId::kAnsMedium, 4.1, 2e-2},
                                 {CodecId::kAnsCoarse, 5.4, 5e-2}});
}

}  // namespace
}  // namespace penstock::tests
