// SPDX-License-Identifier: Apache-2.0
// A tensor of a model file, where it lies in the mapping.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/weight_format.h"

namespace penstock::model {

// Non-owning: valid while the ModelFile it came from lives.
struct Tensor {
  std::string name;
  kernels::WeightFormat format = kernels::WeightFormat::kF32;
  std::vector<std::int64_t> shape;  // Slowest first: a matrix is {rows, cols}.
  std::span<const std::byte> bytes;

  std::int64_t rows() const { return shape.size() == 2 ? shape[0] : 1; }
  std::int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
};

// The tensors of one layer, by what they do. Null where the architecture has none.
struct LayerTensors {
  const Tensor* attn_norm = nullptr;
  const Tensor* q = nullptr;
  const Tensor* k = nullptr;
  const Tensor* v = nullptr;
  const Tensor* o = nullptr;
  const Tensor* q_bias = nullptr;
  const Tensor* k_bias = nullptr;
  const Tensor* v_bias = nullptr;
  const Tensor* q_norm = nullptr;
  const Tensor* k_norm = nullptr;
  const Tensor* post_attn_norm = nullptr;
  const Tensor* ffn_norm = nullptr;
  const Tensor* gate = nullptr;
  const Tensor* up = nullptr;
  const Tensor* down = nullptr;
  const Tensor* post_ffn_norm = nullptr;
};

struct ModelTensors {
  const Tensor* embedding = nullptr;    // [vocab, d_model]
  const Tensor* output_norm = nullptr;  // [d_model]
  const Tensor* head = nullptr;         // [vocab, d_model], null when tied.
  std::vector<LayerTensors> layers;
  float norm_offset =
      0;  // Added to every norm weight when loaded (Hugging Face's gemma stores w - 1).
};

}  // namespace penstock::model
