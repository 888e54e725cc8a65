// SPDX-License-Identifier: Apache-2.0
// Codecs on the KV that a real model makes of a real text (this repository's licence): what they
// gain, and what attending to their copies costs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "base/file.h"
#include "gtest/gtest.h"
#include "kernels/sampling.h"
#include "kvstore/codecs/codec.h"
#include "model/model_file.h"
#include "model/tokenizer.h"
#include "tests/forward_harness.h"

namespace penstock::tests {
namespace {

using kvstore::CodecId;

constexpr std::int32_t kPromptTokens = 512;
constexpr std::int32_t kScoredTokens = 256;

std::vector<TokenId> TextTokens(const std::string& model_path) {
  const auto file = model::ModelFile::Open(model_path);
  EXPECT_TRUE(file.ok()) << file.status();
  const auto tokenizer = model::Tokenizer::Make((*file)->vocabulary());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto text = ReadFile(PENSTOCK_SOURCE_DIR "/LICENSE", std::size_t{1} << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  return (*tokenizer)->Encode(*text, {});
}

// Puts every block of the prompt through the codec, in place. Returns the ratio of bytes.
double Recode(CodecId id, ForwardHarness& harness, const ForwardHarness::Sequence& sequence) {
  const kvstore::Codec& codec = kvstore::CodecOf(id);
  const PageLayout& layout = harness.pool().layout(0);
  kvstore::CodecScratch scratch;
  std::vector<std::byte> out(FrameBytesMax(codec, kvstore::ShapeOf(layout), false));
  const kvstore::FrameMeta meta = {
      .key = {},
      .loss = kvstore::IsLossless(id) ? kvstore::LossClass::kExact : kvstore::LossClass::kKl2,
      .group = 0,
      .first_position = 0};
  std::size_t before = 0;
  std::size_t after = 0;
  for (const engine::SlabRef ref : sequence.slabs[0]) {
    std::byte* const slab = harness.pool().Address(0, ref);
    const std::vector<std::byte> was(slab, slab + layout.block_bytes());
    const auto bytes = EncodeFrame(codec, meta, layout, slab, {}, scratch, out);
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    std::fill(slab, slab + layout.block_bytes(), std::byte{0xFF});
    const auto frame = kvstore::ParseFrame(std::span(out).first(*bytes), {});
    EXPECT_TRUE(frame.ok()) << frame.status();
    EXPECT_TRUE(DecodeFrame(*frame, layout, scratch, slab).ok());
    EXPECT_EQ(std::equal(was.begin(), was.end(), slab), kvstore::IsLossless(id));
    before += layout.block_bytes();
    after += *bytes;
  }
  return static_cast<double>(before) / static_cast<double>(after);
}

// Mean of KL(p || q) over rows of logits.
double MeanKl(const std::vector<std::vector<float>>& p, const std::vector<std::vector<float>>& q) {
  double sum = 0;
  for (std::size_t row = 0; row < p.size(); ++row) {
    const double p_norm = kernels::LogSumExp(p[row]);
    const double q_norm = kernels::LogSumExp(q[row]);
    for (std::size_t i = 0; i < p[row].size(); ++i) {
      const double log_p = p[row][i] - p_norm;
      sum += std::exp(log_p) * (log_p - (q[row][i] - q_norm));
    }
  }
  return sum / static_cast<double>(p.size());
}

struct Want {
  CodecId id;
  double ratio_min, kl_max;
};

void ExpectQuality(KvDtype dtype, const std::vector<Want>& wants) {
  const std::string path = CachedModel("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (path.empty()) GTEST_SKIP() << "no model file; penstock model get smollm2 fetches it";
  const std::vector<TokenId> tokens = TextTokens(path);
  ASSERT_GE(tokens.size(), static_cast<std::size_t>(kPromptTokens + kScoredTokens));
  const std::vector<TokenId> prompt(tokens.begin(), tokens.begin() + kPromptTokens);
  const std::vector<TokenId> scored(tokens.begin() + kPromptTokens,
                                    tokens.begin() + kPromptTokens + kScoredTokens);
  auto harness = ForwardHarness::Make(path, {.threads = 2, .kv_dtype = dtype});
  ASSERT_TRUE(harness.ok()) << harness.status();
  ForwardHarness::Sequence exact = (*harness)->NewSequence();
  (*harness)->Run({{&exact, prompt, 1}});
  const auto logits = (*harness)->Run({{&exact, scored, kScoredTokens}});
  for (const Want& want : wants) {
    SCOPED_TRACE(std::string(ToString(want.id)));
    ForwardHarness::Sequence s = (*harness)->NewSequence();
    (*harness)->Run({{&s, prompt, 1}});
    const double ratio = Recode(want.id, **harness, s);
    const double kl = MeanKl(logits, (*harness)->Run({{&s, scored, kScoredTokens}}));
    std::printf("%s %-11s ratio %.3f, mean KL %.2e\n", std::string(ToString(dtype)).c_str(),
                std::string(ToString(want.id)).c_str(), ratio, kl);
    EXPECT_GE(ratio, want.ratio_min);
    EXPECT_LE(kl, want.kl_max);
    (*harness)->Free(s);
  }
}

TEST(CodecsModelTest, F16) {
  ExpectQuality(KvDtype::kF16, {{CodecId::kPlanes, 1.10, 0},
                                {CodecId::kPlanesZstd, 1.13, 0},
                                {CodecId::kInt8, 1.9, 5e-3},
                                {CodecId::kK8v4, 2.4, 2e-2},
                                {CodecId::kKivi4, 3.0, 5e-2}});
}

TEST(CodecsModelTest, BF16) {
  ExpectQuality(KvDtype::kBF16, {{CodecId::kPlanes, 1.30, 0},
                                 {CodecId::kPlanesZstd, 1.45, 0},
                                 {CodecId::kInt8, 1.9, 5e-3},
                                 {CodecId::kK8v4, 2.4, 2e-2},
                                 {CodecId::kKivi4, 3.0, 5e-2}});
}

}  // namespace
}  // namespace penstock::tests
