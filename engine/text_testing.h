// SPDX-License-Identifier: Apache-2.0
// For tests that score texts: a pool's shape of a full and a window group, and texts.
#pragma once

#include <cstdint>
#include <vector>

#include "base/key.h"
#include "base/kv_spec.h"

namespace penstock::engine {

inline constexpr std::int32_t kTextVocab = 50;

inline KvSpec TextSpec() {
  const auto group = [](std::int32_t window_tokens) {
    return KvGroup{.window_tokens = window_tokens,
                   .cache_layers = 1,
                   .kv_heads = 1,
                   .k_dim = 8,
                   .v_dim = 8,
                   .dtype = KvDtype::kF16};
  };
  return {.groups = {group(0), group(11)}, .layers = {}};
}

inline std::vector<TokenId> TextOf(std::int32_t tokens) {
  std::vector<TokenId> text;
  for (std::int32_t i = 0; i < tokens; ++i) text.push_back((i * i * 7 + i) % kTextVocab);
  return text;
}

}  // namespace penstock::engine
