// SPDX-License-Identifier: Apache-2.0
#include "model/gguf_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/match.h"
#include "model/file_testing.h"
#include "model/vocabulary_parts.h"

namespace penstock::model {
namespace {

using testing::AsBytes;
using testing::Bytes;
using testing::GgufWriter;
using testing::MakeTinyGguf;

TEST(GgufModelTest, ReadsEveryFamily) {
  for (const char* family : {"llama", "qwen2", "qwen3", "gemma3"}) {
    SCOPED_TRACE(family);
    const std::string file = MakeTinyGguf({.family = family, .layers = 7}).Write();
    const auto model = ReadGgufModel(AsBytes(file));
    ASSERT_TRUE(model.ok()) << model.status();
    const Architecture& a = model->architecture;
    const bool gemma = a.family == "gemma3";
    EXPECT_EQ(a.name, "tiny");
    EXPECT_EQ(a.d_model, 16);
    EXPECT_EQ(a.head_dim, 8);
    EXPECT_EQ(a.kv_heads, 1);
    EXPECT_EQ(a.vocab, 8);
    EXPECT_EQ(a.qkv_bias, a.family == "qwen2");
    EXPECT_EQ(a.qk_norm, gemma || a.family == "qwen3");
    EXPECT_EQ(a.post_norms, gemma);
    EXPECT_TRUE(a.tied_head);
    EXPECT_EQ(a.ropes.size(), gemma ? 2u : 1u);
    EXPECT_EQ(a.ropes[0].pairs,
              a.family == "llama" ? kernels::RopePairs::kAdjacent : kernels::RopePairs::kHalves);
    EXPECT_EQ(a.embedding_scale, gemma ? 4.0f : 1.0f);
    EXPECT_EQ(model->tensors.layers[6].q_bias != nullptr, a.qkv_bias);
    EXPECT_EQ(model->tensors.layers[6].down->name, "blk.6.ffn_down.weight");
    EXPECT_EQ(model->tensors.layers[6].down->rows(), 16);
    EXPECT_EQ(model->tensors.layers[6].down->cols(), 24);
    EXPECT_EQ(model->chat_template, "{{ messages }}");
  }
}

TEST(GgufModelTest, Windows) {
  struct Case {
    const char* name;
    const char* family;
    void (*add)(GgufWriter*);
    std::vector<std::int32_t> want;
  };
  for (const Case& c : {
           Case{"mistral",
                "llama",
                [](GgufWriter* w) { w->U32("llama.attention.sliding_window", 4); },
                {4, 4, 4, 4, 4, 4, 4}},
           Case{"qwen names one",
                "qwen2",
                [](GgufWriter* w) { w->U32("qwen2.attention.sliding_window", 4); },
                {0, 0, 0, 0, 0, 0, 0}},
           Case{"gemma without", "gemma3", [](GgufWriter*) {}, {0, 0, 0, 0, 0, 0, 0}},
           Case{"gemma",
                "gemma3",
                [](GgufWriter* w) { w->U32("gemma3.attention.sliding_window", 4); },
                {4, 4, 4, 4, 4, 0, 4}},
           Case{"gemma every third",
                "gemma3",
                [](GgufWriter* w) {
                  w->U32("gemma3.attention.sliding_window", 4);
                  w->U32("gemma3.attention.sliding_window_pattern", 3);
                },
                {4, 4, 0, 4, 4, 0, 4}},
           Case{"gemma by flags",
                "gemma3",
                [](GgufWriter* w) {
                  w->U32("gemma3.attention.sliding_window", 4);
                  w->Array<std::uint8_t>("gemma3.attention.sliding_window_pattern", 7,
                                         {0, 1, 0, 1, 0, 1, 0});
                },
                {0, 4, 0, 4, 0, 4, 0}},
       }) {
    SCOPED_TRACE(c.name);
    GgufWriter w = MakeTinyGguf({.family = c.family, .layers = 7});
    c.add(&w);
    const std::string file = w.Write();
    const auto model = ReadGgufModel(AsBytes(file));
    ASSERT_TRUE(model.ok()) << model.status();
    for (std::size_t i = 0; i < 7; ++i) {
      const LayerSpec& layer = model->architecture.layers[i];
      EXPECT_EQ(layer.window_tokens, c.want[i]) << i;
      const bool local = std::string_view(c.family) == "gemma3" && c.want[i] > 0;
      EXPECT_EQ(layer.rope, local ? 1 : 0) << i;
    }
  }
}

// Factors of Llama 3.1's scaling in rope_freqs.weight, and linear scaling, divide frequencies.
TEST(GgufModelTest, RopeScaling) {
  GgufWriter w = MakeTinyGguf();
  w.F32("llama.rope.freq_base", 500000).F32("llama.rope.scaling.factor", 2);
  w.F32Tensor("rope_freqs.weight", {4});
  std::string file = w.Write();
  const float factors[4] = {1, 1, 2.5f, 8};
  std::memcpy(file.data() + file.size() - 32, factors, sizeof(factors));  // The last tensor.
  const auto model = ReadGgufModel(AsBytes(file));
  ASSERT_TRUE(model.ok()) << model.status();
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_FLOAT_EQ(model->architecture.ropes[0].inverse_frequency[i],
                    std::pow(500000.0f, -static_cast<float>(i) / 4) / 2 / factors[i]);
  }
  // Zeros are no divisors.
  const std::string zeros = w.Write();
  const absl::Status status = ReadGgufModel(AsBytes(zeros)).status();
  EXPECT_TRUE(absl::StrContains(status.message(), "rope_freqs.weight: value 0 must be positive"))
      << status;
}

TEST(GgufModelTest, Vocabularies) {
  const std::string bpe_file = MakeTinyGguf().Write();
  const auto bpe = ReadGgufModel(AsBytes(bpe_file));
  ASSERT_TRUE(bpe.ok()) << bpe.status();
  const VocabularyData& v = bpe->vocabulary;
  EXPECT_EQ(v.scheme, VocabularyData::Scheme::kByteLevelBpe);
  EXPECT_EQ(v.kinds[6], TokenKind::kUserDefined);
  EXPECT_EQ(v.kinds[7], TokenKind::kUnused);  // Its piece is empty.
  EXPECT_EQ(v.pieces[7], "[EMPTY_7]");
  EXPECT_EQ(v.end_of_generation, (std::vector<TokenId>{0, 2}));
  EXPECT_FALSE(v.add_bos || v.add_eos || v.ignore_merges || v.normalize_nfc);

  const std::string spm_file = MakeTinyGguf({.sentence_piece = true}).Write();
  const auto spm = ReadGgufModel(AsBytes(spm_file));
  ASSERT_TRUE(spm.ok()) << spm.status();
  const VocabularyData& s = spm->vocabulary;
  EXPECT_EQ(s.scheme, VocabularyData::Scheme::kSentencePiece);
  EXPECT_EQ(s.bos, 1);
  EXPECT_EQ(s.eos, 2);
  EXPECT_EQ(s.unknown, 0);
  EXPECT_TRUE(s.add_bos && s.add_space_prefix && s.escape_whitespace && s.byte_fallback);
  EXPECT_EQ(s.kinds[3], TokenKind::kByte);
  EXPECT_EQ(s.end_of_generation, (std::vector<TokenId>{2}));
  EXPECT_FALSE(spm->chat_template.has_value());
}

TEST(GgufModelTest, PreTokenizers) {
  for (const char* name :
       {"default", "gpt-2", "smollm", "llama-bpe", "llama3", "qwen2", "tekken"}) {
    ASSERT_TRUE(FindPreTokenizer(name).ok()) << name;
  }
  EXPECT_TRUE(FindPreTokenizer("smollm")->splits[0].digits_individually);
  EXPECT_TRUE(FindPreTokenizer("llama-bpe")->ignore_merges);
  EXPECT_TRUE(FindPreTokenizer("llama-bpe")->add_bos);
  EXPECT_TRUE(FindPreTokenizer("qwen2")->normalize_nfc);
}

TEST(GgufModelTest, RefusesWhatItCannotRun) {
  struct Case {
    const char* name;
    void (*change)(GgufWriter*);
    const char* words;
  };
  for (const Case& c : {
           Case{"experts", [](GgufWriter* w) { w->U32("llama.expert_count", 8); },
                "llama.expert_count is 8: mixtures of experts are not supported"},
           Case{"soft cap", [](GgufWriter* w) { w->F32("llama.final_logit_softcapping", 30); },
                "soft caps are not supported"},
           Case{"yarn", [](GgufWriter* w) { w->Str("llama.rope.scaling.type", "yarn"); },
                "llama.rope.scaling.type must be none or linear, got \"yarn\""},
           Case{"negative factor", [](GgufWriter* w) { w->F32("llama.rope.scaling.factor", -2); },
                "llama.rope.scaling.factor must be positive, got -2"},
           Case{"rope base", [](GgufWriter* w) { w->F32("llama.rope.freq_base", 0); },
                "llama.rope.freq_base must be positive, got 0"},
           Case{"odd rope", [](GgufWriter* w) { w->U32("llama.rope.dimension_count", 7); },
                "must be even, from 2 to 8, got 7"},
           Case{"wide rope", [](GgufWriter* w) { w->U32("llama.rope.dimension_count", 16); },
                "must be even, from 2 to 8, got 16"},
           Case{"key length",
                [](GgufWriter* w) { w->U32("llama.attention.key_length", 0x7FFFFFF8); },
                "head_dim must be from 1 to 1024, got 2147483640"},
           Case{"value length", [](GgufWriter* w) { w->U32("llama.attention.value_length", 16); },
                "llama.attention.value_length must be the key length 8, got 16"},
           Case{"negative window",
                [](GgufWriter* w) {
                  w->Meta("llama.attention.sliding_window", 5,
                          Bytes().Put<std::int32_t>(-1).data());
                },
                "sliding_window must not be negative, got -1"},
           Case{"another tensor", [](GgufWriter* w) { w->F32Tensor("blk.0.ffn_up.bias", {24}); },
                "tensor blk.0.ffn_up.bias is none that the architecture llama with 2 layers has"},
           Case{"a third layer", [](GgufWriter* w) { w->F32Tensor("blk.2.ffn_norm.weight", {16}); },
                "tensor blk.2.ffn_norm.weight is none"},
           Case{"half a bias", [](GgufWriter* w) { w->F32Tensor("blk.0.attn_q.bias", {16}); },
                "tensor blk.0.attn_k.bias is missing"},
           Case{"head shape",
                [](GgufWriter* w) {
                  w->F32Tensor("output.weight", {16, 9});
                },
                "tensor output.weight must have the shape [8, 16], got [9, 16]"},
           Case{"rope factors", [](GgufWriter* w) { w->F32Tensor("rope_freqs.weight", {5}); },
                "rope_freqs.weight must have 4 values, got 5"},
           Case{"end of turn", [](GgufWriter* w) { w->U32("tokenizer.ggml.eot_token_id", 8); },
                "end of generation must be a token id below 8, got 8"},
       }) {
    SCOPED_TRACE(c.name);
    GgufWriter w = MakeTinyGguf();
    c.change(&w);
    const std::string file = w.Write();
    const absl::Status status = ReadGgufModel(AsBytes(file)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.words)) << status << "\nwanted: " << c.words;
  }
}

// A file that is complete but for one key, or has one key wrong.
TEST(GgufModelTest, NamesMissingAndWrongMetadata) {
  struct Case {
    const char* what;
    const char* old_text;
    const char* new_text;  // As long as the old one.
    const char* words;
  };
  for (const Case& c : {
           Case{"architecture", "llama", "mamba", "general.architecture must be llama"},
           Case{"layers", "llama.block_count", "llama.block_c0unt", "llama.block_count is missing"},
           Case{"heads", "attention.head_count\x04", "attention.head_c0unt\x04",
                "llama.attention.head_count is missing"},
           Case{"eps", "rms_epsilon", "rms_epsil0n", "layer_norm_rms_epsilon is missing"},
           Case{"tokens", "ggml.tokens", "ggml.t0kens",
                "tokenizer.ggml.tokens is missing or empty"},
           Case{"merges", "ggml.merges", "ggml.merg3s",
                "tokenizer.ggml.merges is missing or empty: a gpt2 tokenizer needs merges"},
           Case{"pre", "smollm", "smo11m", "unknown pre-tokenizer \"smo11m\""},
           Case{"scheme", "gpt2", "bert",
                "tokenizer.ggml.model must be gpt2 or llama, got \"bert\""},
           Case{"tensor", "blk.1.attn_v", "blk.1.attn_w", "tensor blk.1.attn_v.weight is missing"},
           Case{"embedding", "token_embd", "t0ken_embd", "tensor token_embd.weight is missing"},
       }) {
    SCOPED_TRACE(c.what);
    std::string file = MakeTinyGguf().Write();
    const std::string_view old_text = c.old_text;
    const std::size_t at = file.find(old_text);
    ASSERT_NE(at, std::string::npos);
    file.replace(at, old_text.size(), c.new_text);
    const absl::Status status = ReadGgufModel(AsBytes(file)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.words)) << status << "\nwanted: " << c.words;
  }
}

}  // namespace
}  // namespace penstock::model
