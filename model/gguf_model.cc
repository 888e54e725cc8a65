// SPDX-License-Identifier: Apache-2.0
#include "model/gguf_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/rope_frequencies.h"
#include "model/tensor_binding.h"

namespace penstock::model {
namespace {

TensorNames GgufNames() {
  return {.embedding = "token_embd.weight",
          .output_norm = "output_norm.weight",
          .head = "output.weight",
          .layer_prefix = "blk.",
          .layer = {{&LayerTensors::attn_norm, "attn_norm.weight"},
                    {&LayerTensors::q, "attn_q.weight"},
                    {&LayerTensors::k, "attn_k.weight"},
                    {&LayerTensors::v, "attn_v.weight"},
                    {&LayerTensors::o, "attn_output.weight"},
                    {&LayerTensors::q_bias, "attn_q.bias"},
                    {&LayerTensors::k_bias, "attn_k.bias"},
                    {&LayerTensors::v_bias, "attn_v.bias"},
                    {&LayerTensors::q_norm, "attn_q_norm.weight"},
                    {&LayerTensors::k_norm, "attn_k_norm.weight"},
                    {&LayerTensors::post_attn_norm, "post_attention_norm.weight"},
                    {&LayerTensors::ffn_norm, "ffn_norm.weight"},
                    {&LayerTensors::gate, "ffn_gate.weight"},
                    {&LayerTensors::up, "ffn_up.weight"},
                    {&LayerTensors::down, "ffn_down.weight"},
                    {&LayerTensors::post_ffn_norm, "post_ffw_norm.weight"}},
          // Folded into the frequencies; old converters wrote it per layer.
          .ignored = {"rope_freqs.weight", "attn_rot_embd"}};
}

// Reads "<family>.<name>" metadata.
class Keys {
 public:
  Keys(const Gguf& gguf, std::string family) : gguf_(gguf), family_(std::move(family)) {}

  std::string Key(const char* name) const { return absl::StrCat(family_, ".", name); }
  bool Has(const char* name) const { return gguf_.Find(Key(name)) != nullptr; }
  absl::StatusOr<std::int32_t> Int(const char* name,
                                   std::optional<std::int32_t> fallback = {}) const {
    return gguf_.GetInt(Key(name), fallback);
  }
  absl::StatusOr<float> Float(const char* name, std::optional<float> fallback = {}) const {
    return gguf_.GetFloat(Key(name), fallback);
  }

  // One number, or an array with the same number for every layer.
  absl::StatusOr<std::int32_t> SameInEveryLayer(const char* name,
                                                std::optional<std::int32_t> fallback = {}) const {
    const GgufValue* value = gguf_.Find(Key(name));
    if (value == nullptr || value->type != GgufType::kArray) return Int(name, fallback);
    ASSIGN_OR_RETURN(const std::vector<std::int64_t> each, gguf_.GetInts(Key(name)));
    for (const std::int64_t n : each) {
      if (n != each[0] || n < 0 || n > (1 << 24)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "metadata ", Key(name), " must be the same in every layer, got ", each[0], " and ", n));
      }
    }
    if (each.empty()) return absl::InvalidArgumentError(absl::StrCat(Key(name), " is empty"));
    return static_cast<std::int32_t>(each[0]);
  }

 private:
  const Gguf& gguf_;
  const std::string family_;
};

absl::StatusOr<float> PositiveFloat(const Keys& keys, const char* name, float fallback) {
  ASSIGN_OR_RETURN(const float value, keys.Float(name, fallback));
  if (value > 0) return value;
  return absl::InvalidArgumentError(
      absl::StrCat("metadata ", keys.Key(name), " must be positive, got ", value));
}

absl::Status ReadSizes(const Gguf& gguf, const Keys& keys, Architecture* a) {
  ASSIGN_OR_RETURN(a->name, gguf.GetString("general.name", ""));
  ASSIGN_OR_RETURN(a->d_model, keys.Int("embedding_length"));
  ASSIGN_OR_RETURN(a->qo_heads, keys.SameInEveryLayer("attention.head_count"));
  ASSIGN_OR_RETURN(a->kv_heads, keys.SameInEveryLayer("attention.head_count_kv", a->qo_heads));
  ASSIGN_OR_RETURN(a->ffn_dim, keys.SameInEveryLayer("feed_forward_length"));
  ASSIGN_OR_RETURN(a->context_tokens_max, keys.Int("context_length"));
  ASSIGN_OR_RETURN(a->norm_eps, keys.Float("attention.layer_norm_rms_epsilon"));
  if (keys.Has("attention.key_length")) {
    ASSIGN_OR_RETURN(a->head_dim, keys.Int("attention.key_length"));
  } else {
    if (a->qo_heads < 1 || a->d_model % a->qo_heads != 0) {
      return absl::InvalidArgumentError(absl::StrCat("metadata ", keys.Key("embedding_length"), " ",
                                                     a->d_model, " does not divide into ",
                                                     a->qo_heads, " heads"));
    }
    a->head_dim = a->d_model / a->qo_heads;
  }
  if (a->head_dim < 1 || a->head_dim > 1024) {  // Before tables of that size are made.
    return absl::InvalidArgumentError(
        absl::StrCat(a->family, ": head_dim must be from 1 to 1024, got ", a->head_dim));
  }
  ASSIGN_OR_RETURN(const std::int32_t v_dim, keys.Int("attention.value_length", a->head_dim));
  if (v_dim != a->head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", keys.Key("attention.value_length"),
                                                   " must be the key length ", a->head_dim,
                                                   ", got ", v_dim));
  }
  ASSIGN_OR_RETURN(const std::int32_t layers, keys.Int("block_count"));
  if (layers < 1 || layers > 1024) {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", keys.Key("block_count"),
                                                   " must be from 1 to 1024, got ", layers));
  }
  a->layers.resize(static_cast<std::size_t>(layers));
  return absl::OkStatus();
}

// Things that change the result and that the engine does not compute.
absl::Status RefuseUnknownParts(const Keys& keys) {
  ASSIGN_OR_RETURN(const std::int32_t experts, keys.Int("expert_count", 0));
  if (experts != 0) {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", keys.Key("expert_count"), " is ",
                                                   experts,
                                                   ": mixtures of experts are not supported"));
  }
  for (const char* name : {"final_logit_softcapping", "attn_logit_softcapping"}) {
    ASSIGN_OR_RETURN(const float cap, keys.Float(name, 0.0f));
    if (cap == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", keys.Key(name), " is ", cap, ": soft caps are not supported"));
  }
  return absl::OkStatus();
}

// The factor of linear scaling; 1 without scaling.
absl::StatusOr<float> ReadLinearFactor(const Gguf& gguf, const Keys& keys) {
  ASSIGN_OR_RETURN(const std::string type, gguf.GetString(keys.Key("rope.scaling.type"), "linear"));
  if (type == "none") return 1.0f;
  if (type != "linear") {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", keys.Key("rope.scaling.type"),
                                                   " must be none or linear, got \"",
                                                   absl::CHexEscape(type.substr(0, 100)), "\""));
  }
  const bool current = keys.Has("rope.scaling.factor");
  const char* name = current ? "rope.scaling.factor" : "rope.scale_linear";
  ASSIGN_OR_RETURN(const float factor, keys.Float(name, 1.0f));
  if (factor == 0) return 1.0f;  // As llama.cpp reads it: not set.
  return PositiveFloat(keys, name, 1.0f);
}

// Llama 3.1 and later: the converter evaluated the scaling into divisors.
absl::Status ApplyFactors(const Gguf& gguf, std::vector<float>* frequencies) {
  const Tensor* factors = FindTensor(gguf.tensors(), "rope_freqs.weight");
  if (factors == nullptr) return absl::OkStatus();
  if (factors->shape.size() != 1 ||
      factors->shape[0] != static_cast<std::int64_t>(frequencies->size())) {
    return absl::InvalidArgumentError(absl::StrCat("tensor rope_freqs.weight must have ",
                                                   frequencies->size(), " values, got ",
                                                   factors->cols(), " per row"));
  }
  std::vector<float> divisors(frequencies->size());
  kernels::DequantizeRow(factors->format, factors->bytes.data(), divisors);
  for (std::size_t i = 0; i < divisors.size(); ++i) {
    if (!(divisors[i] > 0) || !std::isfinite(divisors[i])) {
      return absl::InvalidArgumentError(absl::StrCat("tensor rope_freqs.weight: value ", i,
                                                     " must be positive, got ", divisors[i]));
    }
    (*frequencies)[i] /= divisors[i];
  }
  return absl::OkStatus();
}

absl::Status ReadRope(const Gguf& gguf, const Keys& keys, Architecture* a) {
  RopeSpec rope;
  rope.pairs = a->family == "llama" ? kernels::RopePairs::kAdjacent : kernels::RopePairs::kHalves;
  ASSIGN_OR_RETURN(const std::int32_t dim, keys.Int("rope.dimension_count", a->head_dim));
  if (dim < 2 || dim > a->head_dim || dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("metadata ", keys.Key("rope.dimension_count"),
                                                   " must be even, from 2 to ", a->head_dim,
                                                   ", got ", dim));
  }
  ASSIGN_OR_RETURN(const float base, PositiveFloat(keys, "rope.freq_base", 10000));
  ASSIGN_OR_RETURN(const float factor, ReadLinearFactor(gguf, keys));
  rope.inverse_frequency = InverseFrequencies(base, dim, factor);
  RETURN_IF_ERROR(ApplyFactors(gguf, &rope.inverse_frequency));
  a->ropes.push_back(rope);
  if (a->family == "gemma3") {  // Window layers keep the short base, unscaled.
    ASSIGN_OR_RETURN(const float local, PositiveFloat(keys, "rope.freq_base_swa", 10000));
    rope.inverse_frequency = InverseFrequencies(local, dim, 1);
    a->ropes.push_back(rope);
  }
  return absl::OkStatus();
}

// Which of gemma3's layers see only the window: an array of flags, or every n-th sees everything.
absl::StatusOr<std::vector<bool>> ReadWindowed(const Gguf& gguf, const Keys& keys,
                                               std::size_t layers) {
  constexpr const char* kName = "attention.sliding_window_pattern";
  std::vector<bool> windowed(layers);
  const GgufValue* value = gguf.Find(keys.Key(kName));
  if (value != nullptr && value->type == GgufType::kArray) {
    ASSIGN_OR_RETURN(const std::vector<std::int64_t> flags, gguf.GetInts(keys.Key(kName)));
    if (flags.size() != layers) {
      return absl::InvalidArgumentError(absl::StrCat("metadata ", keys.Key(kName), " must have ",
                                                     layers, " flags, got ", flags.size()));
    }
    std::transform(flags.begin(), flags.end(), windowed.begin(),
                   [](std::int64_t flag) { return flag != 0; });
    return windowed;
  }
  ASSIGN_OR_RETURN(const std::int32_t every, keys.Int(kName, 6));
  if (every < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", keys.Key(kName), " must not be negative, got ", every));
  }
  for (std::size_t i = 0; i < layers; ++i) {
    const auto n = static_cast<std::size_t>(every);
    windowed[i] = n == 0 || i % n < n - 1;  // 0: all of them.
  }
  return windowed;
}

absl::Status ReadWindows(const Gguf& gguf, const Keys& keys, Architecture* a) {
  // Mistral's files say "llama"; qwen's name a window that the model does not use.
  const bool uses_window = a->family == "llama" || a->family == "gemma3";
  if (!uses_window) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::int32_t window, keys.Int("attention.sliding_window", 0));
  if (window < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "metadata ", keys.Key("attention.sliding_window"), " must not be negative, got ", window));
  }
  if (window == 0) return absl::OkStatus();
  std::vector<bool> windowed(a->layers.size(), true);
  if (a->family == "gemma3") {
    ASSIGN_OR_RETURN(windowed, ReadWindowed(gguf, keys, a->layers.size()));
  }
  for (std::size_t i = 0; i < a->layers.size(); ++i) {
    if (!windowed[i]) continue;
    a->layers[i].window_tokens = window;
    a->layers[i].rope = a->family == "gemma3" ? 1 : 0;
  }
  return absl::OkStatus();
}

void FillGemma3(Architecture* a) {
  a->embedding_scale = std::sqrt(static_cast<float>(a->d_model));
  a->activation = kernels::Activation::kGeluTanh;
  a->post_norms = true;
  // query_pre_attn_scalar is the head dimension but in the 27B, where it is d_model / heads; the
  // file does not say it, so the layer count tells, as in llama.cpp.
  const bool is_27b = a->layers.size() == 62;
  const std::int32_t scalar = is_27b ? a->d_model / a->qo_heads : a->head_dim;
  a->attention_scale = 1 / std::sqrt(static_cast<float>(scalar));
}

}  // namespace

absl::StatusOr<Architecture> ReadGgufArchitecture(const Gguf& gguf) {
  Architecture a;
  ASSIGN_OR_RETURN(a.family, gguf.GetString("general.architecture"));
  constexpr std::array<std::string_view, 4> kFamilies = {"llama", "qwen2", "qwen3", "gemma3"};
  if (std::find(kFamilies.begin(), kFamilies.end(), a.family) == kFamilies.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata general.architecture must be llama, qwen2, qwen3 or gemma3, got \"",
                     absl::CHexEscape(a.family.substr(0, 100)), "\""));
  }
  const Keys keys(gguf, a.family);
  RETURN_IF_ERROR(RefuseUnknownParts(keys));
  RETURN_IF_ERROR(ReadSizes(gguf, keys, &a));
  a.attention_scale = 1 / std::sqrt(static_cast<float>(a.head_dim));
  a.qk_norm = a.family == "qwen3" || a.family == "gemma3";
  a.qkv_bias = FindTensor(gguf.tensors(), "blk.0.attn_q.bias") != nullptr;
  a.tied_head = FindTensor(gguf.tensors(), "output.weight") == nullptr;
  const Tensor* embedding = FindTensor(gguf.tensors(), "token_embd.weight");
  if (embedding == nullptr) {
    return absl::InvalidArgumentError("tensor token_embd.weight is missing");
  }
  a.vocab = static_cast<std::int32_t>(std::min<std::int64_t>(embedding->rows(), 1 << 30));
  if (a.family == "gemma3" && a.qo_heads > 0) FillGemma3(&a);
  RETURN_IF_ERROR(ReadRope(gguf, keys, &a));
  RETURN_IF_ERROR(ReadWindows(gguf, keys, &a));
  RETURN_IF_ERROR(a.Validate());
  return a;
}

absl::StatusOr<LoadedModel> ReadGgufModel(std::span<const std::byte> bytes) {
  ASSIGN_OR_RETURN(Gguf gguf, Gguf::Parse(bytes));
  LoadedModel out;
  out.format = absl::StrCat("GGUF v", gguf.version());
  ASSIGN_OR_RETURN(out.architecture, ReadGgufArchitecture(gguf));
  ASSIGN_OR_RETURN(out.vocabulary, ReadGgufVocabulary(gguf, out.architecture.vocab));
  if (gguf.Find("tokenizer.chat_template") != nullptr) {
    ASSIGN_OR_RETURN(out.chat_template, gguf.GetString("tokenizer.chat_template"));
  }
  out.all_tensors = gguf.TakeTensors();
  ASSIGN_OR_RETURN(out.tensors, BindTensors(GgufNames(), out.architecture, out.all_tensors));
  return out;
}

}  // namespace penstock::model
