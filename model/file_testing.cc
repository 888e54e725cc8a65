// SPDX-License-Identifier: Apache-2.0
#include "model/file_testing.h"

#include "absl/strings/str_cat.h"

namespace penstock::model::testing {
namespace {

constexpr std::uint64_t kModel = 16;
constexpr std::uint64_t kFfn = 24;
constexpr std::uint64_t kHeads = 2;
constexpr std::uint64_t kVocab = 8;

void AddTensors(const TinyGguf& o, GgufWriter* w) {
  const bool gemma = o.family == "gemma3";
  w->F32Tensor("token_embd.weight", {kModel, kVocab}).F32Tensor("output_norm.weight", {kModel});
  for (std::uint32_t i = 0; i < o.layers; ++i) {
    const std::string blk = absl::StrCat("blk.", i, ".");
    w->F32Tensor(blk + "attn_norm.weight", {kModel})
        .F32Tensor(blk + "attn_q.weight", {kModel, kModel})
        .F32Tensor(blk + "attn_k.weight", {kModel, kModel / kHeads})
        .F32Tensor(blk + "attn_v.weight", {kModel, kModel / kHeads})
        .F32Tensor(blk + "attn_output.weight", {kModel, kModel})
        .F32Tensor(blk + "ffn_norm.weight", {kModel})
        .F32Tensor(blk + "ffn_gate.weight", {kModel, kFfn})
        .F32Tensor(blk + "ffn_up.weight", {kModel, kFfn})
        .F32Tensor(blk + "ffn_down.weight", {kFfn, kModel});
    if (o.family == "qwen2") {
      w->F32Tensor(blk + "attn_q.bias", {kModel})
          .F32Tensor(blk + "attn_k.bias", {kModel / kHeads})
          .F32Tensor(blk + "attn_v.bias", {kModel / kHeads});
    }
    if (gemma || o.family == "qwen3") {
      w->F32Tensor(blk + "attn_q_norm.weight", {kModel / kHeads})
          .F32Tensor(blk + "attn_k_norm.weight", {kModel / kHeads});
    }
    if (gemma) {
      w->F32Tensor(blk + "post_attention_norm.weight", {kModel})
          .F32Tensor(blk + "post_ffw_norm.weight", {kModel});
    }
  }
}

void AddVocabulary(const TinyGguf& o, GgufWriter* w) {
  if (o.sentence_piece) {
    w->Str("tokenizer.ggml.model", "llama")
        .Strs("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "<0x61>", "a", "b", "ab", "\u2581"})
        .Array<float>("tokenizer.ggml.scores", 6, {0, 0, 0, 0, -1, -2, -3, -4})
        .Array<std::int32_t>("tokenizer.ggml.token_type", 5, {2, 3, 3, 6, 1, 1, 1, 1});
    return;
  }
  w->Str("tokenizer.ggml.model", "gpt2")
      .Str("tokenizer.ggml.pre", "smollm")
      .Strs("tokenizer.ggml.tokens",
            {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "c", ""})
      .Array<std::int32_t>("tokenizer.ggml.token_type", 5, {3, 3, 3, 1, 1, 1, 4, 1})
      .Strs("tokenizer.ggml.merges", {"a b"})
      .U32("tokenizer.ggml.bos_token_id", 1)
      .U32("tokenizer.ggml.eos_token_id", 2)
      .Bool("tokenizer.ggml.add_bos_token", false)
      .Str("tokenizer.chat_template", "{{ messages }}");
}

}  // namespace

GgufWriter MakeTinyGguf(const TinyGguf& o) {
  GgufWriter w;
  w.Str("general.architecture", o.family)
      .Str("general.name", "tiny")
      .U32(o.family + ".block_count", o.layers)
      .U32(o.family + ".context_length", 64)
      .U32(o.family + ".embedding_length", kModel)
      .U32(o.family + ".feed_forward_length", kFfn)
      .U32(o.family + ".attention.head_count", kHeads)
      .U32(o.family + ".attention.head_count_kv", 1)
      .F32(o.family + ".attention.layer_norm_rms_epsilon", 1e-5f);
  AddVocabulary(o, &w);
  AddTensors(o, &w);
  return w;
}

}  // namespace penstock::model::testing
