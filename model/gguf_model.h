// SPDX-License-Identifier: Apache-2.0
// What GGUF metadata says about a model: architecture, tensors by what they do, vocabulary.
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"
#include "model/gguf.h"
#include "model/loaded_model.h"

namespace penstock::model {

// `bytes`: a whole GGUF file, which must outlive the result. Architectures: llama (mistral, too),
// qwen2, qwen3, gemma3. DATA_LOSS for truncated files, INVALID_ARGUMENT for all else, naming
// field, value and limit.
absl::StatusOr<LoadedModel> ReadGgufModel(std::span<const std::byte> bytes);

// Its parts. `vocab`: rows of the embedding table, the most tokens there can be.
absl::StatusOr<Architecture> ReadGgufArchitecture(const Gguf& gguf);
absl::StatusOr<VocabularyData> ReadGgufVocabulary(const Gguf& gguf, std::int32_t vocab);

}  // namespace penstock::model
