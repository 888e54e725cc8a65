// SPDX-License-Identifier: Apache-2.0
// What a Hugging Face folder says about a model: config.json, tokenizer.json and their companions,
// in the spellings of transformers 4 and 5. Pure functions but for ReadHfFolder; any thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file.h"
#include "model/json.h"
#include "model/loaded_model.h"

namespace penstock::model {

// The texts of a folder's files; empty where a file is missing.
struct HfTexts {
  std::string config;
  std::string tokenizer;
  std::string tokenizer_config;   // Optional.
  std::string generation_config;  // Optional.
  std::string chat_template;      // chat_template.jinja, optional.
};

// NOT_FOUND without config.json, tokenizer.json or weights; else as ReadHfModel. The mappings that
// the result views are added to `files`.
absl::StatusOr<LoadedModel> ReadHfFolder(const std::string& path, std::vector<MappedFile>* files);

// `tensors`: of all shards. Architectures: Llama, Mistral, Qwen2, Qwen3 and Gemma3 (its text part)
// ForCausalLM. INVALID_ARGUMENT naming field, value and limit.
absl::StatusOr<LoadedModel> ReadHfModel(const HfTexts& texts, std::vector<Tensor> tensors);

// Its parts.
absl::StatusOr<Architecture> ReadHfArchitecture(const Json& config,
                                                const std::vector<Tensor>& tensors);
// `vocab`: rows of the embedding table; added tokens beyond it are left out, since the model cannot
// read them. `config` and `generation_config` name the tokens that end an answer.
absl::StatusOr<VocabularyData> ReadHfVocabulary(const HfTexts& texts, const Json& config,
                                                std::int32_t vocab);

// The prefix of a model's tensor names, "model." in most: the text part may lie deeper.
std::string HfTensorPrefix(const std::vector<Tensor>& tensors);

}  // namespace penstock::model
