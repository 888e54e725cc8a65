// SPDX-License-Identifier: Apache-2.0
// The inverse frequencies of rotary positions, and the ways that models stretch them for long
// contexts. Computed in double, rounded once. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <vector>

namespace penstock::model {

// base^(-2i / rotary_dim) / factor for i in [0, rotary_dim / 2). A factor above 1 is "linear"
// scaling: positions are divided by it.
std::vector<float> InverseFrequencies(float base, std::int32_t rotary_dim, float factor);

// Llama 3.1's scaling: long waves are slowed by `factor`, short ones kept, those in between mixed.
struct Llama3Scaling {
  float factor = 8;
  float low_freq_factor = 1;
  float high_freq_factor = 4;
  float original_context_tokens = 8192;
};
std::vector<float> Llama3InverseFrequencies(float base, std::int32_t rotary_dim,
                                            const Llama3Scaling& scaling);

}  // namespace penstock::model
