// SPDX-License-Identifier: Apache-2.0
// What a reader of one format makes from the bytes of its files; ModelFile keeps it together with
// the mappings. For the readers and their tests; everybody else uses model/model_file.h.
//
// `all_tensors` views the files' bytes and `tensors` points into `all_tensors`: movable, not
// copyable.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model/architecture.h"
#include "model/tensor.h"
#include "model/vocabulary.h"

namespace penstock::model {

struct LoadedModel {
  LoadedModel() = default;
  LoadedModel(LoadedModel&&) = default;
  LoadedModel& operator=(LoadedModel&&) = default;

  std::string format;
  Architecture architecture;
  std::vector<Tensor> all_tensors;
  ModelTensors tensors;
  VocabularyData vocabulary;
  std::optional<std::string> chat_template;
};

}  // namespace penstock::model
