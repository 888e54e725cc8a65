// SPDX-License-Identifier: Apache-2.0
// A model on disk, whatever its format: a GGUF file, or a Hugging Face folder (safetensors,
// config.json, tokenizer.json). Everything is checked when it is opened: after that, shapes fit the
// architecture and every tensor's bytes are inside its file.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/architecture.h"
#include "model/tensor.h"
#include "model/vocabulary.h"

namespace penstock::model {

// Immutable once open; any thread. Owns the mappings that tensors point into.
class ModelFile {
 public:
  virtual ~ModelFile() = default;

  // By what is there: a directory is a Hugging Face folder, a file is GGUF. NOT_FOUND, DATA_LOSS
  // (truncated) or INVALID_ARGUMENT (corrupt, hostile or unsupported: names the field, its value
  // and the limit).
  static absl::StatusOr<std::unique_ptr<ModelFile>> Open(const std::string& path);

  virtual const std::string& path() const = 0;
  virtual std::string format() const = 0;  // "GGUF v3", "safetensors"
  virtual const Architecture& architecture() const = 0;
  virtual const ModelTensors& tensors() const = 0;
  virtual const std::vector<Tensor>& all_tensors() const = 0;  // In file order, for people.
  virtual const VocabularyData& vocabulary() const = 0;
  virtual const std::optional<std::string>& chat_template() const = 0;
  // Gives the pages of a tensor that was read for the last time back to the system.
  virtual void Drop(std::span<const std::byte> part) const = 0;
};

}  // namespace penstock::model
