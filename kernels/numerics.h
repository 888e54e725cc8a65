// SPDX-License-Identifier: Apache-2.0
// Which promise a worker's computation keeps about bits; a deployment chooses one for each model.
//
// kExact: a request's bits depend on nothing but itself (kernels/linear.h, attention.h and
// elementwise.h fix every order), so that blocks are reused, and answers go on after a failover, bit
// by bit, between CPUs and GPUs. The default.
// kFast: on GPUs, products by algorithms that a library picks for each shape of a batch, and prompts
// attended to by another where it is found (kernels/fast_attention.h). The same
// request may get other bits in another batch: answers are as good, and not the same; no block is
// shared with exact, and an answer that goes on at another worker may go on differently than it would
// have.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

namespace penstock::kernels {

enum class Numerics : std::uint8_t { kExact, kFast };

std::string_view ToString(Numerics numerics);  // "exact", "fast": flags and deployments say so.
// INVALID_ARGUMENT with the words that there are.
absl::StatusOr<Numerics> ParseNumerics(std::string_view text);

}  // namespace penstock::kernels
