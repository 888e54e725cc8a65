// SPDX-License-Identifier: Apache-2.0
#include "cli/quality_report.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "cli/svg_chart.h"

namespace penstock::cli {
namespace {

using kvstore::CodecId;

kvstore::QualityRecord Record() {
  kvstore::QualityRecord record;
  record.block_tokens = 32;
  record.prompt_tokens = 3072;
  record.scored_tokens = 512;
  record.perplexity = 10;
  record.last_bit_kl = 0.0025;
  record.needles = 5;
  record.needles_correct = 4;
  record.codecs = {{.codec = CodecId::kRaw, .bits_per_value = 16.01, .perplexity = 10},
                   {.codec = CodecId::kPlanes, .bits_per_value = 14, .perplexity = 10},
                   {.codec = CodecId::kInt8,
                    .bits_per_value = 8,
                    .mean_kl = 0.00277,
                    .perplexity = 10.05,
                    .needles_correct = 3},
                   {.codec = CodecId::kKivi2, .bits_per_value = 3, .mean_kl = 0.2}};
  return record;
}

TEST(QualityReportTest, TableHasEveryCodecAndItsClass) {
  const std::string text = QualityText("m<1>.gguf", Record());
  for (const char* const part : {"m<1>.gguf", "raw", "exact", "int8", "kl3", "2.77e-03", "+0.50%",
                                 "3/4", "kivi2", "none", "2.00"}) {
    EXPECT_TRUE(absl::StrContains(text, part)) << part << " in\n" << text;
  }
  kvstore::QualityRecord without = Record();
  without.needles = 0;
  EXPECT_FALSE(absl::StrContains(QualityText("m", without), "needles"));
}

TEST(QualityReportTest, AgainstF16SaysWhatTheTypeCosts) {
  kvstore::QualityRecord record = Record();
  record.kv_dtype = KvDtype::kInt8;
  const std::string text = AgainstF16Text(
      record, {.mean_kl = 0.00123, .top1 = 0.975, .p_perplexity = 10, .q_perplexity = 10.1});
  for (const char* const part : {"int8 KV against f16 KV", "1.23e-03", "97.5%", "+1.00%"}) {
    EXPECT_TRUE(absl::StrContains(text, part)) << part << " in\n" << text;
  }
}

TEST(QualityReportTest, PictureNamesCodecsAndLimits) {
  const std::string svg = QualitySvg("m<1>.gguf", Record());
  for (const char* const part : {"m&lt;1&gt;.gguf", ">raw: exact<", ">int8<", ">kivi2<",
                                 "kl3 up to 0.005", "kl2 up to 0.05", "other last bits alone"}) {
    EXPECT_TRUE(absl::StrContains(svg, part)) << part;
  }
  EXPECT_FALSE(absl::StrContains(svg, "nan"));
}

TEST(QualityReportTest, DecadesEncloseTheirRange) {
  EXPECT_EQ(DecadeTicks(0.002, 0.3).size(), 4u);
  EXPECT_EQ(DecadeTicks(0.002, 0.3).front(), 0.001);
  EXPECT_EQ(DecadeTicks(0.002, 0.3).back(), 1);
  EXPECT_EQ(DecadeTicks(1, 1).size(), 2u);
}

}  // namespace
}  // namespace penstock::cli
