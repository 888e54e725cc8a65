// SPDX-License-Identifier: Apache-2.0
#include "model/hf_model.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/safetensors.h"
#include "model/tensor_binding.h"

namespace penstock::model {
namespace {

constexpr std::size_t kConfigBytesMax = 1u << 20;
constexpr std::size_t kTextBytesMax = 64u << 20;

TensorNames HfNames(const std::string& prefix, const Architecture& a) {
  TensorNames names;
  names.embedding = absl::StrCat(prefix, "embed_tokens.weight");
  names.output_norm = absl::StrCat(prefix, "norm.weight");
  const bool nested = prefix == "language_model.model.";
  names.head = nested ? "language_model.lm_head.weight" : "lm_head.weight";
  names.layer_prefix = absl::StrCat(prefix, "layers.");
  names.layer = {{&LayerTensors::attn_norm, "input_layernorm.weight"},
                 {&LayerTensors::q, "self_attn.q_proj.weight"},
                 {&LayerTensors::k, "self_attn.k_proj.weight"},
                 {&LayerTensors::v, "self_attn.v_proj.weight"},
                 {&LayerTensors::o, "self_attn.o_proj.weight"},
                 {&LayerTensors::q_bias, "self_attn.q_proj.bias"},
                 {&LayerTensors::k_bias, "self_attn.k_proj.bias"},
                 {&LayerTensors::v_bias, "self_attn.v_proj.bias"},
                 {&LayerTensors::q_norm, "self_attn.q_norm.weight"},
                 {&LayerTensors::k_norm, "self_attn.k_norm.weight"},
                 {&LayerTensors::gate, "mlp.gate_proj.weight"},
                 {&LayerTensors::up, "mlp.up_proj.weight"},
                 {&LayerTensors::down, "mlp.down_proj.weight"}};
  if (a.post_norms) {
    names.layer.push_back({&LayerTensors::post_attn_norm, "post_attention_layernorm.weight"});
    names.layer.push_back({&LayerTensors::ffn_norm, "pre_feedforward_layernorm.weight"});
    names.layer.push_back({&LayerTensors::post_ffn_norm, "post_feedforward_layernorm.weight"});
  } else {
    names.layer.push_back({&LayerTensors::ffn_norm, "post_attention_layernorm.weight"});
  }
  // Old checkpoints keep rope's table; models that see images keep their eyes.
  names.ignored = {"rotary_emb.inv_freq", "vision_tower.", "multi_modal_projector."};
  return names;
}

absl::Status CheckDistinct(const std::vector<Tensor>& tensors) {
  absl::flat_hash_set<std::string> names;
  for (const Tensor& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", tensor.name, " is in two of the shards"));
    }
  }
  return absl::OkStatus();
}

// chat_template.jinja, or the one in tokenizer_config.json: a text, or a list with one "default".
absl::StatusOr<std::optional<std::string>> ReadChatTemplate(const HfTexts& texts) {
  if (!texts.chat_template.empty()) return texts.chat_template;
  if (texts.tokenizer_config.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(const Json config,
                   ParseJsonObject(texts.tokenizer_config, "tokenizer_config.json", kTextBytesMax));
  const Json* value = Member(config, "chat_template");
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) {
    ASSIGN_OR_RETURN(std::string text, GetJsonString(config, "chat_template"));
    return text;
  }
  for (const Json& named : *value) {
    ASSIGN_OR_RETURN(const std::string name, GetJsonString(named, "name", ""));
    if (name != "default") continue;
    ASSIGN_OR_RETURN(std::string text, GetJsonString(named, "template"));
    return text;
  }
  return std::nullopt;
}

// Empty where there is no such file.
absl::StatusOr<std::string> ReadOptional(const std::string& path, std::size_t bytes_max) {
  absl::StatusOr<std::string> text = ReadFile(path, bytes_max);
  if (absl::IsNotFound(text.status())) return std::string();
  return text;
}

absl::StatusOr<std::vector<std::string>> ListShards(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string index, ReadOptional(path + "/model.safetensors.index.json",
                                                         kSafetensorsHeaderBytesMax));
  if (index.empty()) return std::vector<std::string>{"model.safetensors"};
  return ParseShardIndex(index);
}

absl::Status In(std::string_view file, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(ToAbsl(file), ": ", status.message()));
}

}  // namespace

absl::StatusOr<LoadedModel> ReadHfModel(const HfTexts& texts, std::vector<Tensor> tensors) {
  LoadedModel out;
  out.format = "safetensors";
  RETURN_IF_ERROR(CheckDistinct(tensors));
  ASSIGN_OR_RETURN(const Json config,
                   ParseJsonObject(texts.config, "config.json", kConfigBytesMax));
  ASSIGN_OR_RETURN(out.architecture, ReadHfArchitecture(config, tensors));
  ASSIGN_OR_RETURN(out.vocabulary, ReadHfVocabulary(texts, config, out.architecture.vocab));
  ASSIGN_OR_RETURN(out.chat_template, ReadChatTemplate(texts));
  out.all_tensors = std::move(tensors);
  const TensorNames names = HfNames(HfTensorPrefix(out.all_tensors), out.architecture);
  ASSIGN_OR_RETURN(out.tensors, BindTensors(names, out.architecture, out.all_tensors));
  out.tensors.norm_offset = out.architecture.family == "gemma3" ? 1 : 0;
  return out;
}

absl::StatusOr<LoadedModel> ReadHfFolder(const std::string& path, std::vector<MappedFile>* files) {
  HfTexts texts;
  ASSIGN_OR_RETURN(texts.config, ReadFile(path + "/config.json", kConfigBytesMax));
  ASSIGN_OR_RETURN(texts.tokenizer, ReadFile(path + "/tokenizer.json", kTextBytesMax));
  ASSIGN_OR_RETURN(texts.tokenizer_config,
                   ReadOptional(path + "/tokenizer_config.json", kTextBytesMax));
  ASSIGN_OR_RETURN(texts.generation_config,
                   ReadOptional(path + "/generation_config.json", kConfigBytesMax));
  ASSIGN_OR_RETURN(texts.chat_template,
                   ReadOptional(path + "/chat_template.jinja", kConfigBytesMax));
  ASSIGN_OR_RETURN(const std::vector<std::string> shards, ListShards(path));
  std::vector<Tensor> tensors;
  for (const std::string& shard : shards) {
    ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(absl::StrCat(path, "/", shard)));
    absl::StatusOr<std::vector<Tensor>> part = ParseSafetensors(file.bytes());
    if (!part.ok()) return In(shard, part.status());
    files->push_back(std::move(file));  // Moves keep the mapping where it is.
    for (Tensor& tensor : *part) tensors.push_back(std::move(tensor));
  }
  return ReadHfModel(texts, std::move(tensors));
}

}  // namespace penstock::model
