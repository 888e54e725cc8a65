// SPDX-License-Identifier: Apache-2.0
#include "model/architecture.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/status.h"

namespace penstock::model {
namespace {

struct Limit {
  const char* field;
  std::int64_t value;
  std::int64_t most;
};

}  // namespace

absl::Status Architecture::Validate() const {
  const auto layers_count = static_cast<std::int64_t>(layers.size());
  for (const Limit& l :
       {Limit{"layers", layers_count, 1024}, Limit{"d_model", d_model, 1 << 17},
        Limit{"qo_heads", qo_heads, 1024}, Limit{"kv_heads", kv_heads, 1024},
        Limit{"head_dim", head_dim, 1024}, Limit{"ffn_dim", ffn_dim, 1 << 20},
        Limit{"vocab", vocab, 1 << 24}, Limit{"context_tokens_max", context_tokens_max, 1 << 28}}) {
    if (l.value < 1 || l.value > l.most) {
      return absl::InvalidArgumentError(
          absl::StrCat(family, ": ", l.field, " must be from 1 to ", l.most, ", got ", l.value));
    }
  }
  if (qo_heads % kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        family, ": ", qo_heads, " query heads do not divide into ", kv_heads, " KV heads"));
  }
  if (head_dim % 8 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(family, ": head_dim must be a multiple of 8, got ", head_dim));
  }
  if (!(norm_eps > 0 && norm_eps < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat(family, ": norm_eps must be in (0, 1), got ", norm_eps));
  }
  if (!(attention_scale > 0 && std::isfinite(attention_scale))) {
    return absl::InvalidArgumentError(
        absl::StrCat(family, ": attention_scale must be positive, got ", attention_scale));
  }
  for (const RopeSpec& rope : ropes) {
    const std::size_t pairs_max = static_cast<std::size_t>(head_dim) / 2;
    if (rope.inverse_frequency.size() > pairs_max) {
      return absl::InvalidArgumentError(absl::StrCat(family, ": rope turns ",
                                                     rope.inverse_frequency.size(),
                                                     " pairs, a head has ", pairs_max));
    }
    if (!std::all_of(rope.inverse_frequency.begin(), rope.inverse_frequency.end(),
                     [](float f) { return std::isfinite(f); })) {
      return absl::InvalidArgumentError(absl::StrCat(family, ": a rope frequency is not finite"));
    }
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::int32_t rope = layers[i].rope;
    if (rope < 0 || static_cast<std::size_t>(rope) >= ropes.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(family, ": layer ", i, " names rope ", rope, " of ", ropes.size()));
    }
    if (layers[i].window_tokens < 0) {
      return absl::InvalidArgumentError(absl::StrCat(family, ": layer ", i, " has a window of ",
                                                     layers[i].window_tokens, " tokens"));
    }
  }
  return absl::OkStatus();
}

KvSpec Architecture::MakeKvSpec(KvDtype dtype) const {
  KvSpec spec;
  for (const LayerSpec& layer : layers) {
    auto group = std::find_if(spec.groups.begin(), spec.groups.end(), [&layer](const KvGroup& g) {
      return g.window_tokens == layer.window_tokens;
    });
    if (group == spec.groups.end()) {
      spec.groups.push_back({.window_tokens = layer.window_tokens,
                             .cache_layers = 0,
                             .kv_heads = kv_heads,
                             .k_dim = head_dim,
                             .v_dim = head_dim,
                             .dtype = dtype});
      group = spec.groups.end() - 1;
    }
    spec.layers.push_back({.group = static_cast<std::int32_t>(group - spec.groups.begin()),
                           .cache_layer = group->cache_layers++});
  }
  return spec;
}

}  // namespace penstock::model
