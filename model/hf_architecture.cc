// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/hf_model.h"
#include "model/rope_frequencies.h"
#include "model/tensor_binding.h"

namespace penstock::model {
namespace {

struct Family {
  std::string_view architecture;
  std::string_view name;
};
constexpr std::array<Family, 6> kFamilies = {{{"LlamaForCausalLM", "llama"},
                                              {"MistralForCausalLM", "mistral"},
                                              {"Qwen2ForCausalLM", "qwen2"},
                                              {"Qwen3ForCausalLM", "qwen3"},
                                              {"Gemma3ForCausalLM", "gemma3"},
                                              {"Gemma3ForConditionalGeneration", "gemma3"}}};

absl::StatusOr<std::string> FindFamily(const Json& config) {
  const Json* names = Member(config, "architectures");
  if (names == nullptr || !names->is_array() || names->empty() || !(*names)[0].is_string()) {
    return absl::InvalidArgumentError("config.json: architectures must be an array with a name");
  }
  const std::string& name = (*names)[0].get_ref<const std::string&>();
  for (const Family& family : kFamilies) {
    if (family.architecture == name) return std::string(family.name);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "config.json: architectures must be Llama, Mistral, Qwen2, Qwen3 or Gemma3ForCausalLM, got ",
      Brief((*names)[0])));
}

absl::Status RefuseUnknownParts(const Json& config) {
  for (const char* key : {"quantization_config", "final_logit_softcapping",
                          "attn_logit_softcapping", "num_local_experts", "num_experts"}) {
    if (const Json* value = Member(config, key); value != nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: ", key, " is not supported, got ", Brief(*value)));
    }
  }
  ASSIGN_OR_RETURN(const bool both, GetJsonBool(config, "use_bidirectional_attention", false));
  if (both) {
    return absl::InvalidArgumentError("config.json: use_bidirectional_attention is not supported");
  }
  ASSIGN_OR_RETURN(const float part, GetJsonFloat(config, "partial_rotary_factor", 1.0f));
  if (part != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: partial_rotary_factor must be 1, got ", part));
  }
  return absl::OkStatus();
}

absl::Status ReadSizes(const Json& config, bool gemma, Architecture* a) {
  // What gemma's published configs leave out; the others always say it.
  const auto gemmas = [gemma](std::int32_t n) {
    return gemma ? std::optional<std::int32_t>(n) : std::nullopt;
  };
  ASSIGN_OR_RETURN(a->name, GetJsonString(config, "_name_or_path", ""));
  ASSIGN_OR_RETURN(a->d_model, GetJsonInt(config, "hidden_size"));
  ASSIGN_OR_RETURN(a->qo_heads, GetJsonInt(config, "num_attention_heads", gemmas(8)));
  ASSIGN_OR_RETURN(a->kv_heads, GetJsonInt(config, "num_key_value_heads", gemma ? 4 : a->qo_heads));
  ASSIGN_OR_RETURN(a->ffn_dim, GetJsonInt(config, "intermediate_size"));
  ASSIGN_OR_RETURN(a->context_tokens_max,
                   GetJsonInt(config, "max_position_embeddings", gemmas(131072)));
  ASSIGN_OR_RETURN(a->norm_eps, GetJsonFloat(config, "rms_norm_eps", 1e-6f));
  std::optional<std::int32_t> head_dim = gemmas(256);
  if (a->family == "qwen3") head_dim = 128;
  if (!head_dim && a->qo_heads > 0 && a->d_model % a->qo_heads == 0) {
    head_dim = a->d_model / a->qo_heads;
  }
  ASSIGN_OR_RETURN(a->head_dim, GetJsonInt(config, "head_dim", head_dim));
  ASSIGN_OR_RETURN(a->tied_head, GetJsonBool(config, "tie_word_embeddings", gemma));
  ASSIGN_OR_RETURN(const std::int32_t layers, GetJsonInt(config, "num_hidden_layers"));
  if (layers < 1 || layers > 1024) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: num_hidden_layers must be from 1 to 1024, got ", layers));
  }
  a->layers.resize(static_cast<std::size_t>(layers));
  return absl::OkStatus();
}

absl::Status ReadActivation(const Json& config, bool gemma, Architecture* a) {
  const char* key =
      gemma && Member(config, "hidden_activation") ? "hidden_activation" : "hidden_act";
  const char* want = gemma ? "gelu_pytorch_tanh" : "silu";
  ASSIGN_OR_RETURN(const std::string got, GetJsonString(config, key, want));
  if (got != want) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: ", key, " must be ", want, ", got ", Quoted(got)));
  }
  a->activation = gemma ? kernels::Activation::kGeluTanh : kernels::Activation::kSilu;
  return absl::OkStatus();
}

absl::StatusOr<float> Positive(const Json& object, const char* key,
                               std::optional<float> fallback = {}) {
  ASSIGN_OR_RETURN(const float value, GetJsonFloat(object, key, fallback));
  if (value > 0) return value;
  return absl::InvalidArgumentError(
      absl::StrCat("config.json: ", key, " must be positive, got ", value));
}

// `rope`: rope_parameters (transformers 5) or rope_scaling (4); null for none. `theta`: the base
// where `rope` has none.
absl::StatusOr<RopeSpec> ReadRope(const Json* rope, float theta, const Architecture& a) {
  const Json none = Json::object();
  if (rope == nullptr) rope = &none;
  if (!rope->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: rope parameters must be an object, got ", Brief(*rope)));
  }
  ASSIGN_OR_RETURN(const float base, Positive(*rope, "rope_theta", theta));
  const char* key = Member(*rope, "rope_type") ? "rope_type" : "type";
  ASSIGN_OR_RETURN(const std::string type, GetJsonString(*rope, key, "default"));
  ASSIGN_OR_RETURN(const float part, GetJsonFloat(*rope, "partial_rotary_factor", 1.0f));
  if (part != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: partial_rotary_factor must be 1, got ", part));
  }
  RopeSpec out;
  out.pairs = kernels::RopePairs::kHalves;
  if (type == "default") {
    out.inverse_frequency = InverseFrequencies(base, a.head_dim, 1);
  } else if (type == "linear") {
    ASSIGN_OR_RETURN(const float factor, Positive(*rope, "factor"));
    out.inverse_frequency = InverseFrequencies(base, a.head_dim, factor);
  } else if (type == "llama3") {
    Llama3Scaling s;
    ASSIGN_OR_RETURN(s.factor, Positive(*rope, "factor"));
    ASSIGN_OR_RETURN(s.low_freq_factor, Positive(*rope, "low_freq_factor"));
    ASSIGN_OR_RETURN(s.high_freq_factor, Positive(*rope, "high_freq_factor"));
    ASSIGN_OR_RETURN(s.original_context_tokens, Positive(*rope, "original_max_position_embeddings",
                                                         static_cast<float>(a.context_tokens_max)));
    if (s.high_freq_factor <= s.low_freq_factor) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: high_freq_factor ", s.high_freq_factor,
                       " must be above low_freq_factor ", s.low_freq_factor));
    }
    out.inverse_frequency = Llama3InverseFrequencies(base, a.head_dim, s);
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "config.json: ", key, " must be default, linear or llama3, got ", Quoted(type)));
  }
  return out;
}

absl::Status ReadRopes(const Json& config, bool gemma, Architecture* a) {
  if (a->head_dim < 2 || a->head_dim > 1024) {  // Before tables of that size are made.
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: head_dim must be from 2 to 1024, got ", a->head_dim));
  }
  const Json* rope = Member(config, "rope_parameters");
  if (rope == nullptr) rope = Member(config, "rope_scaling");
  const Json* global = rope;
  const Json* local = nullptr;
  if (rope != nullptr && (Member(*rope, "full_attention") || Member(*rope, "sliding_attention"))) {
    if (!gemma) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: rope_parameters by layer type are not known for ", a->family));
    }
    global = Member(*rope, "full_attention");
    local = Member(*rope, "sliding_attention");
  }
  ASSIGN_OR_RETURN(const float theta, Positive(config, "rope_theta", gemma ? 1e6f : 1e4f));
  ASSIGN_OR_RETURN(RopeSpec spec, ReadRope(global, theta, *a));
  a->ropes.push_back(std::move(spec));
  if (gemma) {
    ASSIGN_OR_RETURN(const float local_theta, Positive(config, "rope_local_base_freq", 1e4f));
    ASSIGN_OR_RETURN(RopeSpec local_spec, ReadRope(local, local_theta, *a));
    a->ropes.push_back(std::move(local_spec));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<bool>> ReadLayerTypes(const Json& types, std::size_t layers) {
  if (!types.is_array() || types.size() != layers) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: layer_types must be an array of ",
                                                   layers, ", got ", Brief(types)));
  }
  std::vector<bool> windowed;
  for (const Json& type : types) {
    const bool window = type == "sliding_attention";
    if (!window && type != "full_attention") {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: layer_types must be full_attention or sliding_attention, got ",
                       Brief(type)));
    }
    windowed.push_back(window);
  }
  return windowed;
}

// Which layers see only the window, each family by its own rule.
absl::StatusOr<std::vector<bool>> ReadWindowed(const Json& config, const Architecture& a) {
  const std::size_t layers = a.layers.size();
  if (a.family == "mistral") return std::vector<bool>(layers, true);
  if (a.family == "llama") return std::vector<bool>(layers, false);
  if (a.family != "gemma3") {
    ASSIGN_OR_RETURN(const bool uses, GetJsonBool(config, "use_sliding_window", false));
    if (!uses) return std::vector<bool>(layers, false);
  }
  if (const Json* types = Member(config, "layer_types")) return ReadLayerTypes(*types, layers);
  std::vector<bool> windowed(layers);
  if (a.family == "gemma3") {
    ASSIGN_OR_RETURN(const std::int32_t every, GetJsonInt(config, "sliding_window_pattern", 6));
    if (every < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: sliding_window_pattern must be positive, got ", every));
    }
    for (std::size_t i = 0; i < layers; ++i) {
      windowed[i] = (i + 1) % static_cast<std::size_t>(every) != 0;
    }
  } else {
    ASSIGN_OR_RETURN(const std::int32_t full, GetJsonInt(config, "max_window_layers", 28));
    for (std::size_t i = 0; i < layers; ++i) windowed[i] = i >= static_cast<std::size_t>(full);
  }
  return windowed;
}

absl::Status ReadWindows(const Json& config, Architecture* a) {
  const bool null_window = config.contains("sliding_window") && config["sliding_window"].is_null();
  if (null_window) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::int32_t window, GetJsonInt(config, "sliding_window", 4096));
  ASSIGN_OR_RETURN(const std::vector<bool> windowed, ReadWindowed(config, *a));
  for (std::size_t i = 0; i < a->layers.size(); ++i) {
    if (!windowed[i]) continue;
    if (window < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("config.json: sliding_window must be positive, got ", window));
    }
    a->layers[i].window_tokens = window;
    a->layers[i].rope = a->family == "gemma3" ? 1 : 0;
  }
  return absl::OkStatus();
}

absl::Status FillGemma3(const Json& config, Architecture* a) {
  a->embedding_scale = std::sqrt(static_cast<float>(a->d_model));
  a->post_norms = true;
  ASSIGN_OR_RETURN(const float scalar, Positive(config, "query_pre_attn_scalar", 256));
  a->attention_scale = 1 / std::sqrt(scalar);
  return absl::OkStatus();
}

}  // namespace

std::string HfTensorPrefix(const std::vector<Tensor>& tensors) {
  for (const char* prefix : {"language_model.model.", "model.language_model."}) {
    if (FindTensor(tensors, absl::StrCat(prefix, "embed_tokens.weight"))) return prefix;
  }
  return "model.";
}

absl::StatusOr<Architecture> ReadHfArchitecture(const Json& config,
                                                const std::vector<Tensor>& tensors) {
  Architecture a;
  ASSIGN_OR_RETURN(a.family, FindFamily(config));
  const Json* text = ObjectMember(config, "text_config");  // Of models that also see images.
  const Json& c = text != nullptr ? *text : config;
  const bool gemma = a.family == "gemma3";
  RETURN_IF_ERROR(RefuseUnknownParts(c));
  RETURN_IF_ERROR(ReadSizes(c, gemma, &a));
  RETURN_IF_ERROR(ReadActivation(c, gemma, &a));
  const std::string prefix = HfTensorPrefix(tensors);
  const Tensor* embedding = FindTensor(tensors, absl::StrCat(prefix, "embed_tokens.weight"));
  if (embedding == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", prefix, "embed_tokens.weight is missing"));
  }
  a.vocab = static_cast<std::int32_t>(std::min<std::int64_t>(embedding->rows(), 1 << 30));
  a.qkv_bias =
      FindTensor(tensors, absl::StrCat(prefix, "layers.0.self_attn.q_proj.bias")) != nullptr;
  a.qk_norm = a.family == "qwen3" || gemma;
  a.attention_scale = 1 / std::sqrt(static_cast<float>(a.head_dim));
  if (gemma) RETURN_IF_ERROR(FillGemma3(c, &a));
  RETURN_IF_ERROR(ReadRopes(c, gemma, &a));
  RETURN_IF_ERROR(ReadWindows(c, &a));
  RETURN_IF_ERROR(a.Validate());
  return a;
}

}  // namespace penstock::model
