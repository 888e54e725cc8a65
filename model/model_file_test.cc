// SPDX-License-Identifier: Apache-2.0
// The real files, where they are: what is read from them, against what their publishers say.
#include "model/model_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

namespace penstock::model {
namespace {

std::string Cached(const char* name) {
  return std::string(PENSTOCK_SOURCE_DIR) + "/.cache/models/" + name;
}

void CheckShapes(const ModelFile& file) {
  const Architecture& a = file.architecture();
  EXPECT_TRUE(a.Validate().ok());
  ASSERT_EQ(file.tensors().layers.size(), a.layers.size());
  for (const LayerTensors& layer : file.tensors().layers) {
    ASSERT_NE(layer.q, nullptr);
    EXPECT_EQ(layer.q->rows(), a.qo_heads * a.head_dim);
    EXPECT_EQ(layer.q->cols(), a.d_model);
    EXPECT_EQ(layer.down->cols(), a.ffn_dim);
    EXPECT_EQ(layer.q_bias, nullptr);
    EXPECT_EQ(layer.q_norm != nullptr, a.qk_norm);
  }
}

TEST(ModelFileTest, SmolLm2) {
  const std::string path = Cached("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  auto file = ModelFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->format(), "GGUF v3");
  const Architecture& a = (*file)->architecture();
  EXPECT_EQ(a.family, "llama");
  EXPECT_EQ(a.d_model, 576);
  EXPECT_EQ(a.qo_heads, 9);
  EXPECT_EQ(a.kv_heads, 3);
  EXPECT_EQ(a.head_dim, 64);
  EXPECT_EQ(a.ffn_dim, 1536);
  EXPECT_EQ(a.vocab, 49152);
  EXPECT_EQ(a.layers.size(), 30u);
  EXPECT_EQ(a.context_tokens_max, 8192);
  EXPECT_FLOAT_EQ(a.norm_eps, 1e-5f);
  EXPECT_EQ(a.attention_scale, 0.125f);
  EXPECT_TRUE(a.tied_head);
  EXPECT_FALSE(a.qk_norm || a.qkv_bias || a.post_norms);
  ASSERT_EQ(a.ropes.size(), 1u);
  EXPECT_EQ(a.ropes[0].pairs, kernels::RopePairs::kAdjacent);
  EXPECT_EQ(a.ropes[0].inverse_frequency.size(), 32u);
  EXPECT_FLOAT_EQ(a.ropes[0].inverse_frequency[1], 1 / std::pow(1e5f, 1 / 32.0f));
  EXPECT_EQ(a.layers[0].window_tokens, 0);
  CheckShapes(**file);
  EXPECT_EQ((*file)->tensors().layers[0].q->format, kernels::WeightFormat::kQ4_1);
  EXPECT_EQ((*file)->tensors().embedding->format, kernels::WeightFormat::kQ8_0);

  const VocabularyData& v = (*file)->vocabulary();
  EXPECT_EQ(v.scheme, VocabularyData::Scheme::kByteLevelBpe);
  EXPECT_EQ(v.pieces.size(), 49152u);
  EXPECT_EQ(v.merges.size(), 48900u);
  ASSERT_EQ(v.splits.size(), 2u);
  EXPECT_TRUE(v.splits[0].digits_individually);
  EXPECT_FALSE(v.add_bos);
  EXPECT_EQ(v.bos, 1);
  EXPECT_EQ(v.eos, 2);
  EXPECT_EQ(v.end_of_generation, (std::vector<TokenId>{0, 2}));
  EXPECT_NE((*file)->chat_template().value_or("").find("<|im_start|>"), std::string::npos);
}

TEST(ModelFileTest, Gemma3) {
  const std::string path = Cached("gemma-3-270m-q4_k_m.gguf");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  auto file = ModelFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const Architecture& a = (*file)->architecture();
  EXPECT_EQ(a.family, "gemma3");
  EXPECT_EQ(a.d_model, 640);
  EXPECT_EQ(a.qo_heads, 4);
  EXPECT_EQ(a.kv_heads, 1);
  EXPECT_EQ(a.head_dim, 256);
  EXPECT_EQ(a.vocab, 262144);
  EXPECT_EQ(a.layers.size(), 18u);
  EXPECT_EQ(a.embedding_scale, std::sqrt(640.0f));
  EXPECT_EQ(a.attention_scale, 1 / 16.0f);
  EXPECT_EQ(a.activation, kernels::Activation::kGeluTanh);
  EXPECT_TRUE(a.qk_norm && a.post_norms && a.tied_head);
  EXPECT_EQ((*file)->tensors().norm_offset, 0);
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    const bool full = i % 6 == 5;
    EXPECT_EQ(a.layers[i].window_tokens, full ? 0 : 512) << i;
    EXPECT_EQ(a.ropes[static_cast<std::size_t>(a.layers[i].rope)].inverse_frequency[1],
              static_cast<float>(std::pow(full ? 1e6 : 1e4, -1 / 128.0)))
        << i;
  }
  EXPECT_EQ(a.ropes[0].pairs, kernels::RopePairs::kHalves);
  CheckShapes(**file);

  const VocabularyData& v = (*file)->vocabulary();
  EXPECT_EQ(v.scheme, VocabularyData::Scheme::kSentencePiece);
  EXPECT_EQ(v.scores.size(), 262144u);
  EXPECT_TRUE(v.add_bos);
  EXPECT_FALSE(v.add_space_prefix);
  EXPECT_EQ(v.end_of_generation, (std::vector<TokenId>{1, 106}));  // <eos>, <end_of_turn>
  EXPECT_EQ(std::count(v.kinds.begin(), v.kinds.end(), TokenKind::kByte), 256);
}

TEST(ModelFileTest, DropKeepsTheBytes) {
  const std::string path = Cached("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  auto file = ModelFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const Tensor& t = *(*file)->tensors().layers[3].down;
  const std::vector<std::byte> before(t.bytes.begin(), t.bytes.end());
  (*file)->Drop(t.bytes);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), t.bytes.begin(), t.bytes.end()));
}

}  // namespace
}  // namespace penstock::model
