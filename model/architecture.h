// SPDX-License-Identifier: Apache-2.0
// One description of a decoder-only transformer, filled in by the readers of each file format; the
// engine runs it and never asks which model family it came from.
//
// A layer computes, with optional parts in []:
//   h = x;  q, k, v = Wqkv norm(h) [+ bias];  [q, k = norm per head];  rope;  a = attention(q, K,
//   V) x = h + [norm] Wo a;   x = x + [norm] Wdown(act(Wgate norm(x)) * Wup norm(x))
// Plain values; norm weights are as multiplied (a "1 + w" convention is folded in by the reader).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/kv_spec.h"
#include "kernels/elementwise.h"

namespace penstock::model {

struct RopeSpec {
  kernels::RopePairs pairs = kernels::RopePairs::kHalves;
  std::vector<float>
      inverse_frequency;  // [rotary_dim / 2]; base, scaling and long-context factors are folded in.
  float magnitude = 1;
};

struct LayerSpec {
  std::int32_t window_tokens = 0;  // 0: full attention.
  std::int32_t rope = 0;           // Index into Architecture::ropes.
};

struct Architecture {
  std::string family;  // As the file names it: "llama", "qwen2", "gemma3": for people and errors.
  std::string name;    // The model's own name, may be empty.
  std::int32_t d_model = 0;
  std::int32_t qo_heads = 0;
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;  // Of Q, K and V.
  std::int32_t ffn_dim = 0;
  std::int32_t vocab = 0;
  std::int32_t context_tokens_max = 0;  // What the model was trained for.
  float norm_eps = 0;
  float embedding_scale = 1;
  float attention_scale = 0;  // 1 / sqrt(head_dim) in most.
  kernels::Activation activation = kernels::Activation::kSilu;
  bool qkv_bias = false;
  bool qk_norm = false;
  bool post_norms = false;  // Norms after attention and after the MLP, before the residual (gemma).
  bool tied_head = false;   // The output head is the embedding table.
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;

  // INVALID_ARGUMENT that names the field, its value and the limit: sizes positive and sane, heads
  // divisible, one layer at least, rope sizes that fit head_dim.
  absl::Status Validate() const;

  // Groups of layers by window, in order of first use.
  KvSpec MakeKvSpec(KvDtype dtype) const;
};

}  // namespace penstock::model
