// SPDX-License-Identifier: Apache-2.0
// The small models of tests/make_tiny_models.py, and folders that are wrong.
#include "model/hf_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "base/status.h"
#include "model/file_testing.h"
#include "model/model_file.h"
#include "model/safetensors.h"

namespace penstock::model {
namespace {

std::string Tiny(const std::string& name) {
  return std::string(PENSTOCK_SOURCE_DIR) + "/tests/golden/tiny/" + name;
}

TEST(HfModelTest, ReadsTheTinyModels) {
  struct Case {
    const char* name;
    const char* family;
    std::int32_t head_dim;
    std::int32_t kv_heads;
    std::size_t layers;
    std::int32_t window;
    bool tied, qkv_bias, qk_norm;
    kernels::WeightFormat format;
  };
  using F = kernels::WeightFormat;
  for (const Case& c : {Case{"llama3", "llama", 16, 2, 3, 0, true, false, false, F::kBF16},
                        Case{"llama2", "llama", 16, 4, 2, 0, false, false, false, F::kF32},
                        Case{"mistral", "mistral", 32, 2, 3, 8, false, false, false, F::kBF16},
                        Case{"qwen2", "qwen2", 16, 2, 2, 0, false, true, false, F::kF16},
                        Case{"qwen3", "qwen3", 24, 1, 2, 0, true, false, true, F::kBF16},
                        Case{"gemma3", "gemma3", 32, 1, 7, 8, true, false, true, F::kBF16}}) {
    SCOPED_TRACE(c.name);
    const auto file = ModelFile::Open(Tiny(c.name));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ((*file)->format(), "safetensors");
    const Architecture& a = (*file)->architecture();
    EXPECT_EQ(a.family, c.family);
    EXPECT_EQ(a.d_model, 64);
    EXPECT_EQ(a.qo_heads, 4);
    EXPECT_EQ(a.kv_heads, c.kv_heads);
    EXPECT_EQ(a.head_dim, c.head_dim);
    EXPECT_EQ(a.ffn_dim, 96);
    EXPECT_EQ(a.vocab, 320);
    EXPECT_EQ(a.context_tokens_max, 512);
    EXPECT_EQ(a.tied_head, c.tied);
    EXPECT_EQ(a.qkv_bias, c.qkv_bias);
    EXPECT_EQ(a.qk_norm, c.qk_norm);
    ASSERT_EQ(a.layers.size(), c.layers);
    EXPECT_EQ(a.layers[0].window_tokens, c.window);
    EXPECT_EQ(a.ropes[0].pairs, kernels::RopePairs::kHalves);
    const ModelTensors& t = (*file)->tensors();
    EXPECT_EQ(t.embedding->format, c.format);
    EXPECT_EQ(t.head == nullptr, c.tied);
    EXPECT_EQ(t.norm_offset, a.family == "gemma3" ? 1 : 0);
    EXPECT_EQ(t.layers.back().q_bias != nullptr, c.qkv_bias);
    EXPECT_EQ(t.layers.back().q_norm != nullptr, c.qk_norm);
    EXPECT_EQ(t.layers.back().post_ffn_norm != nullptr, a.post_norms);
    EXPECT_TRUE(absl::StrContains((*file)->chat_template().value_or(""), "m.role"));
  }
}

TEST(HfModelTest, Gemma3) {
  const auto file = ModelFile::Open(Tiny("gemma3"));
  ASSERT_TRUE(file.ok()) << file.status();
  const Architecture& a = (*file)->architecture();
  EXPECT_EQ(a.embedding_scale, 8);
  EXPECT_FLOAT_EQ(a.attention_scale, 1 / std::sqrt(24.0f));
  EXPECT_EQ(a.activation, kernels::Activation::kGeluTanh);
  for (std::size_t i = 0; i < 7; ++i) {
    EXPECT_EQ(a.layers[i].window_tokens, i == 5 ? 0 : 8);
    EXPECT_EQ(a.layers[i].rope, i == 5 ? 0 : 1);
  }
  EXPECT_FLOAT_EQ(a.ropes[0].inverse_frequency[1], std::pow(1e5f, -1 / 16.0f) / 4);
  EXPECT_FLOAT_EQ(a.ropes[1].inverse_frequency[1], std::pow(1e3f, -1 / 16.0f));
  const LayerTensors& layer = (*file)->tensors().layers[0];
  EXPECT_EQ(layer.post_attn_norm->name, "model.layers.0.post_attention_layernorm.weight");
  EXPECT_EQ(layer.ffn_norm->name, "model.layers.0.pre_feedforward_layernorm.weight");
}

// The values that transformers' _compute_llama3_parameters gives for this config.
TEST(HfModelTest, Llama3Rope) {
  const auto file = ModelFile::Open(Tiny("llama3"));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<float>& got = (*file)->architecture().ropes[0].inverse_frequency;
  const std::vector<float> want = {
      1.0f,           0.244384587f,    0.0130422562f,   0.00395284733f,
      0.00124999997f, 0.000395284733f, 0.000125000006f, 3.95284733e-05f};
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_FLOAT_EQ(got[i], want[i]) << i;
}

TEST(HfModelTest, Vocabularies) {
  const auto llama3 = ModelFile::Open(Tiny("llama3"));
  ASSERT_TRUE(llama3.ok()) << llama3.status();
  const VocabularyData& v = (*llama3)->vocabulary();
  EXPECT_EQ(v.scheme, VocabularyData::Scheme::kByteLevelBpe);
  EXPECT_EQ(v.pieces.size(), 313u);
  EXPECT_EQ(v.kinds[310], TokenKind::kControl);
  EXPECT_TRUE(v.ignore_merges && v.add_bos);
  EXPECT_EQ(v.bos, 310);
  EXPECT_EQ(v.eos, 312);
  EXPECT_EQ(v.end_of_generation, (std::vector<TokenId>{311, 312}));
  ASSERT_EQ(v.splits.size(), 1u);
  EXPECT_TRUE(absl::StrContains(v.splits[0].pattern, "\\p{N}{1,3}"));
  EXPECT_EQ(v.merges[0], "e r");

  const auto qwen = ModelFile::Open(Tiny("qwen2"));
  ASSERT_TRUE(qwen.ok()) << qwen.status();
  EXPECT_TRUE((*qwen)->vocabulary().normalize_nfc);
  EXPECT_FALSE((*qwen)->vocabulary().add_bos);
  EXPECT_EQ((*qwen)->vocabulary().end_of_generation, (std::vector<TokenId>{310, 312}));

  const auto llama2 = ModelFile::Open(Tiny("llama2"));
  ASSERT_TRUE(llama2.ok()) << llama2.status();
  const VocabularyData& s = (*llama2)->vocabulary();
  EXPECT_EQ(s.scheme, VocabularyData::Scheme::kSentencePiece);
  EXPECT_TRUE(s.add_space_prefix && s.escape_whitespace && s.byte_fallback && s.add_bos);
  EXPECT_TRUE(s.scores.empty());
  EXPECT_EQ(s.merges[1], "\u2581 t");
  EXPECT_EQ(s.kinds[3], TokenKind::kByte);
  EXPECT_EQ(s.unknown, 0);
  EXPECT_EQ(s.end_of_generation, (std::vector<TokenId>{2}));

  const auto gemma = ModelFile::Open(Tiny("gemma3"));
  ASSERT_TRUE(gemma.ok()) << gemma.status();
  EXPECT_FALSE((*gemma)->vocabulary().add_space_prefix);
  EXPECT_EQ((*gemma)->vocabulary().bos, 2);
  EXPECT_EQ((*gemma)->vocabulary().end_of_generation, (std::vector<TokenId>{1, 4}));
}

// One tiny model in memory, whose texts a test may bend.
struct Loaded {
  HfTexts texts;
  std::string weights;

  absl::StatusOr<LoadedModel> Read() const {
    ASSIGN_OR_RETURN(std::vector<Tensor> tensors, ParseSafetensors(testing::AsBytes(weights)));
    return ReadHfModel(texts, std::move(tensors));
  }
};

Loaded Load(const std::string& name) {
  const auto text = [&name](const char* file) {
    return ReadFile(Tiny(name) + "/" + file, 1 << 20).value_or("");
  };
  return {{text("config.json"), text("tokenizer.json"), text("tokenizer_config.json"),
           text("generation_config.json"), ""},
          text("model.safetensors")};
}

struct Bend {
  const char* model;
  const char* from;
  const char* to;
  const char* words;
};

TEST(HfModelTest, RefusesWrongConfigs) {
  for (const Bend& c : {
           Bend{"llama3", "LlamaForCausalLM", "MambaForCausalLM", "architectures must be Llama"},
           Bend{"llama3", "\"architectures\"", "\"arch\"", "architectures must be an array"},
           Bend{"llama3", "\"silu\"", "\"relu\"", "hidden_act must be silu, got \"relu\""},
           Bend{"llama3", "\"hidden_size\": 64", "\"hidden_size\": 65",
                "must have the shape [320, 65]"},
           Bend{"llama3", "\"hidden_size\": 64", "\"hidden_size\": \"64\"",
                "hidden_size must be an integer from 0 to 2147483647, got \"64\""},
           Bend{"llama3", "\"hidden_size\": 64", "\"hidden_size\": -64", "got -64"},
           Bend{"llama3", "\"hidden_size\"", "\"hidden_width\"", "hidden_size is missing"},
           Bend{"llama3", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4",
                "tensor model.layers.3.input_layernorm.weight is missing"},
           Bend{"llama3", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2",
                "is none that the architecture llama with 2 layers has"},
           Bend{"llama3", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2000000000",
                "must be from 1 to 1024, got 2000000000"},
           Bend{"llama3", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3",
                "4 query heads do not divide into 3"},
           Bend{"llama3", "\"head_dim\": 16", "\"head_dim\": 1000000000",
                "head_dim must be from 2 to 1024, got 1000000000"},
           Bend{"llama3", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 0",
                "norm_eps must be in (0, 1)"},
           Bend{"llama3", "\"llama3\"", "\"yarn\"",
                "rope_type must be default, linear or llama3, got \"yarn\""},
           Bend{"llama3", "\"factor\"", "\"fact\"", "factor is missing"},
           Bend{"llama3", "\"low_freq_factor\": 1.0", "\"low_freq_factor\": 4.0",
                "high_freq_factor 4 must be above low_freq_factor 4"},
           Bend{"llama3", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false",
                "tensor lm_head.weight is missing"},
           Bend{"llama3", "\"vocab_size\"", "\"quantization_config\": {}, \"vocab_size\"",
                "quantization_config is not supported"},
           Bend{"llama3", "\"vocab_size\"", "\"hidden_size\": 64, \"vocab_size\"",
                "config.json has the key \"hidden_size\" twice"},
           Bend{"llama3", "{", "", "config.json is not valid JSON"},
           Bend{"mistral", "\"sliding_window\": 8", "\"sliding_window\": 0",
                "sliding_window must be positive, got 0"},
           Bend{"gemma3", "full_attention\",\n    \"sli", "half_attention\",\n    \"sli",
                "layer_types must be full_attention or sliding_attention, got \"half_attention\""},
           Bend{"gemma3", "\"num_hidden_layers\": 7", "\"num_hidden_layers\": 8",
                "layer_types must be an array of 8, got an array of 7"},
           Bend{"gemma3", "\"final_logit_softcapping\": null", "\"final_logit_softcapping\": 30.0",
                "final_logit_softcapping is not supported, got 30.0"},
           Bend{"gemma3", "\"query_pre_attn_scalar\": 24", "\"query_pre_attn_scalar\": 0",
                "query_pre_attn_scalar must be positive, got 0"},
           Bend{"qwen2", "\"default\"", "\"dynamic\"", "got \"dynamic\""},
       }) {
    SCOPED_TRACE(absl::StrCat(c.model, ": ", c.to));
    Loaded model = Load(c.model);
    ASSERT_TRUE(absl::StrContains(model.texts.config, c.from));
    const std::size_t at = model.texts.config.find(c.from);
    model.texts.config.replace(at, std::string_view(c.from).size(), c.to);
    const absl::Status status = model.Read().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.words)) << status << "\nwanted: " << c.words;
  }
}

TEST(HfModelTest, RefusesWrongTokenizers) {
  for (const Bend& c : {
           Bend{"llama3", "\"type\": \"BPE\"", "\"type\": \"Unigram\"",
                "model \"Unigram\" is not supported"},
           Bend{"llama3", "\"merges\"", "\"m3rges\"", "model.merges must be an array with merges"},
           Bend{"llama3", "\"vocab\"", "\"v0cab\"", "model.vocab must be an object with pieces"},
           Bend{"llama3", "\"model\"", "\"m0del\"", "model must be an object"},
           Bend{"llama3", "\"!\": 0", "\"!\": 320",
                "the id of \"!\" must be below the embedding table's 320 rows, got 320"},
           Bend{"llama3", "\"!\": 0", "\"!\": -1", "got -1"},
           Bend{"llama3", "\"!\": 0", "\"!\": 1", "id 1 is given to"},
           Bend{"llama3", "\"id\": 310", "\"id\": 1", "id 1 is given to"},
           Bend{"llama3", "\"lstrip\": false", "\"lstrip\": true", "added token with lstrip"},
           Bend{"llama3", "\"Isolated\"", "\"Removed\"", "Split with \"Removed\" is not supported"},
           Bend{"llama3", "\"add_prefix_space\": false", "\"add_prefix_space\": true",
                "add_prefix_space"},
           Bend{"llama3", "\"normalizer\": null", "\"normalizer\": {\"type\": \"Lowercase\"}",
                "normalizer \"Lowercase\" is not supported"},
           Bend{"llama3", "\"type\": \"ByteLevel\",\n        \"add_prefix_space\": false",
                "\"type\": \"Whitespace\",\n        \"add_prefix_space\": false",
                "pre_tokenizer \"Whitespace\" is not supported"},
           Bend{"llama3", "TemplateProcessing", "BertProcessing",
                "post_processor \"BertProcessing\" is not supported"},
           Bend{"mistral", "\"byte_fallback\": true", "\"byte_fallback\": false",
                "must be byte-level or have byte_fallback"},
           Bend{"mistral", "\"prepend\": \"\u2581\"", "\"prepend\": \"_\"", "Prepend of \"_\""},
           Bend{"llama3", "\"continuing_subword_prefix\": null",
                "\"continuing_subword_prefix\": \"##\"",
                "model continuing_subword_prefix \"##\" is not supported"},
       }) {
    SCOPED_TRACE(absl::StrCat(c.model, ": ", c.to));
    Loaded model = Load(c.model);
    ASSERT_TRUE(absl::StrContains(model.texts.tokenizer, c.from));
    const std::size_t at = model.texts.tokenizer.find(c.from);
    model.texts.tokenizer.replace(at, std::string_view(c.from).size(), c.to);
    const absl::Status status = model.Read().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.words)) << status << "\nwanted: " << c.words;
  }
}

TEST(HfModelTest, EndIdsAndTemplatesMayBeLists) {
  Loaded model = Load("llama3");
  model.texts.generation_config = R"({"eos_token_id": [312, 3]})";
  model.texts.tokenizer_config =
      R"({"add_bos_token": false, "bos_token": "<|begin_of_text|>", "chat_template":
          [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})";
  const auto read = model.Read();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->vocabulary.end_of_generation, (std::vector<TokenId>{3, 311, 312}));
  EXPECT_FALSE(read->vocabulary.add_bos);
  EXPECT_EQ(read->chat_template, "d");
  model.texts.chat_template = "jinja";
  EXPECT_EQ(model.Read()->chat_template, "jinja");
  model.texts.generation_config = R"({"eos_token_id": 999})";
  EXPECT_TRUE(absl::StrContains(model.Read().status().message(), "below 313, got 999"));
  model.texts.generation_config = R"({"eos_token_id": "x"})";
  EXPECT_TRUE(
      absl::StrContains(model.Read().status().message(), "eos_token_id must be a token id"));
}

TEST(HfModelTest, FoldersThatLackAFile) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / "penstock_hf_model_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  EXPECT_EQ(ModelFile::Open(folder).status().code(), absl::StatusCode::kNotFound);
  for (const char* file : {"config.json", "tokenizer.json"}) {
    std::filesystem::copy(Tiny("llama2") + "/" + file, folder / file);
    EXPECT_EQ(ModelFile::Open(folder).status().code(), absl::StatusCode::kNotFound) << file;
  }
  std::ofstream(folder / "model.safetensors.index.json")
      << R"({"weight_map": {"a": "model-00001-of-00003.safetensors", "b": "missing.safetensors"}})";
  std::filesystem::copy(Tiny("llama2") + "/model-00001-of-00003.safetensors", folder);
  const absl::Status status = ModelFile::Open(folder).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(status.message(), "missing.safetensors")) << status;
  std::filesystem::copy(folder / "model-00001-of-00003.safetensors",
                        folder / "missing.safetensors");
  EXPECT_TRUE(
      absl::StrContains(ModelFile::Open(folder).status().message(), "is in two of the shards"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace penstock::model
