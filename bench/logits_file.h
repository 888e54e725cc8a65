// SPDX-License-Identifier: Apache-2.0
// The logits of every position of a text, in a file that numpy maps: the input of comparisons with
// other implementations.
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "base/key.h"
#include "engine/local_model.h"

namespace penstock::bench {

// Writes f32 [tokens, vocab], little-endian, to `path`. `model` is loaded with room for one
// sequence of that many tokens. INVALID_ARGUMENT: no tokens, or ids outside the vocabulary.
// RESOURCE_EXHAUSTED: the pool is too small. PERMISSION_DENIED: `path` cannot be written.
absl::Status WriteLogits(engine::LocalModel& model, std::span<const TokenId> tokens,
                         const std::string& path);

}  // namespace penstock::bench
