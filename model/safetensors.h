// SPDX-License-Identifier: Apache-2.0
// The safetensors container: a JSON header, then the bytes of the tensors.
// https://github.com/huggingface/safetensors#format
//
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tensor.h"

namespace penstock::model {

constexpr std::size_t kSafetensorsHeaderBytesMax = 16u << 20;  // A thousand layers take one.

// The tensors of one file, by offset; they view `bytes`, which must outlive them, and may start at
// any address. DATA_LOSS where the file ends too early; INVALID_ARGUMENT for all else: offsets that
// overlap or leave holes, shapes that do not fit them, number types other than F32, F16 and BF16.
absl::StatusOr<std::vector<Tensor>> ParseSafetensors(std::span<const std::byte> bytes);

// model.safetensors.index.json: the names of the shards, each once, in order. A name that is more
// than a plain file name is an INVALID_ARGUMENT: shards lie beside their index.
absl::StatusOr<std::vector<std::string>> ParseShardIndex(std::string_view text);

}  // namespace penstock::model
