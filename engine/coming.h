// SPDX-License-Identifier: Apache-2.0
// What an engine is told of blocks that come from elsewhere while it computes the same prompt: it
// goes from the front, they come from the back, until both meet.
//
// A plain value; any thread.
#pragma once

#include <cstdint>

namespace penstock::engine {

// Blocks of a prompt below `end_block` are being brought into the pool, the last one first. Of
// those that are neither there nor computed, `share` (0 to 1) is what is computed before the two
// meet, at the speeds that are known: a chunk is no longer than that, nor shorter than a block.
struct Coming {
  std::int32_t end_block = 0;  // 0: none are.
  double share = 1;
};

}  // namespace penstock::engine
