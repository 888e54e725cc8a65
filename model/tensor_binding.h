// SPDX-License-Identifier: Apache-2.0
// Finds the tensors that an architecture needs under the names of a file format, and checks every
// shape. Pure functions; any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/architecture.h"
#include "model/tensor.h"

namespace penstock::model {

// How a format names tensors: globals in full, those of layer i as prefix + i + "." + name.
struct TensorNames {
  struct Role {
    const Tensor* LayerTensors::*member;
    std::string_view name;
  };
  std::string embedding;
  std::string output_norm;
  std::string head;
  std::string layer_prefix;
  std::vector<Role> layer;
  std::vector<std::string_view>
      ignored;  // Parts of names of tensors that the engine can do without.
};

// INVALID_ARGUMENT naming the tensor when one is missing, has another shape than `architecture`
// says, or is none that this architecture knows (running without it would be wrong). With
// `tied_head`, a head that the file has all the same is ignored.
absl::StatusOr<ModelTensors> BindTensors(const TensorNames& names, const Architecture& architecture,
                                         const std::vector<Tensor>& tensors);

// Null where there is none.
const Tensor* FindTensor(const std::vector<Tensor>& tensors, std::string_view name);

}  // namespace penstock::model
