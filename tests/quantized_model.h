// SPDX-License-Identifier: Apache-2.0
// Random models in quantized formats, of which the repository has no small ones.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/weight_format.h"

namespace penstock::tests {

// A model of the family llama, of width 256.
struct QuantizedModel {
  std::uint32_t layers = 2;
  std::uint64_t heads = 4;
  std::uint64_t kv_heads = 2;
  std::uint64_t head_dim = 64;
  std::uint64_t ffn = 512;
  // Of its matrices, one after another, again and again; none of the plain floats.
  std::vector<kernels::WeightFormat> formats;
};
// Writes it as a GGUF file to `path`. Equal from call to call.
void WriteQuantizedModel(const QuantizedModel& model, const std::string& path);

// Writes models to `folder` which between them have every weight format; returns the name and path
// of each.
std::vector<std::pair<std::string, std::string>> WriteQuantizedModels(const std::string& folder);

}  // namespace penstock::tests
