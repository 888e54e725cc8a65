// SPDX-License-Identifier: Apache-2.0
// How much a forward pass must read and compute, from the architecture alone, and how long that
// takes at the machine's limits: the time that nothing can beat.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/kv_spec.h"
#include "bench/machine_limits.h"
#include "model/architecture.h"

namespace penstock::bench {

struct Work {
  double read_bytes = 0;   // Weights once a pass, KV of every row's context.
  double linear_macs = 0;  // Multiply-adds of the weight matrices.
  double attention_macs = 0;

  Work& operator+=(const Work& other);
};

// A pass with `rows` new tokens of one sequence that has `context` tokens already; logits of the
// last one. KV counts as read once a pass. `weights_bytes` as loaded: everything but the rows of an
// untied embedding table is read in each pass. Add KvAndRows() of further sequences in the pass.
Work PassWork(const model::Architecture& architecture, KvDtype kv_dtype, std::size_t weights_bytes,
              std::int64_t context, std::int64_t rows);

// The same without reading the weights: what a further sequence adds to a pass.
Work KvAndRows(const model::Architecture& architecture, KvDtype kv_dtype, std::int64_t context,
               std::int64_t rows);

struct LeastTime {
  double seconds = 0;
  std::string_view limit;  // "read", or "multiply".
};
// Reading and multiplying overlap; int8 products and the float ones of attention do not.
LeastTime TimeAtLimits(const Work& work, const MachineLimits& limits);

}  // namespace penstock::bench
