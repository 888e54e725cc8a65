// SPDX-License-Identifier: Apache-2.0
// How the bytes of one layer of a block lie at the sender and at the receiver, where the two differ
// in page size or in which KV heads they hold (tensor parallelism). Computed once per pair.
//
// A unit is one cache layer of one block, of the heads that both sides have; it travels in the
// sender's order of bytes and is checked in that order. Units are whole layers of whole blocks: of
// a partial block (a prompt's end) the rows behind its tokens travel too, whatever they hold: the
// checksum needs a fixed set of bytes.
//
// Workers whose slabs lie in parts on several GPUs have one plan for each pair of parts
// (split_plan.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "transfer/link.h"

namespace penstock::transfer {

// One group of one worker's pool. `layout.group.kv_heads` counts the heads that this worker holds.
struct SideLayout {
  PageLayout layout;
  std::int32_t head_begin = 0;  // Of the model's heads, the first that this worker holds.
};

class LayerPlan {
 public:
  // FAILED_PRECONDITION naming the field and both values where the sides cannot exchange KV:
  // block_tokens, dtype, k_dim, v_dim, cache_layers or window differ, they share no head, or a
  // layer of a block is 4 GiB or more.
  static absl::StatusOr<LayerPlan> Make(const SideLayout& sender, const SideLayout& receiver) {
    return Make(sender, receiver, {});
  }
  // Of the model's heads from `heads.begin` to `heads.end` alone, as far as both have them.
  struct Heads {
    std::int32_t begin = 0;
    std::int32_t end = std::numeric_limits<std::int32_t>::max();
  };
  static absl::StatusOr<LayerPlan> Make(const SideLayout& sender, const SideLayout& receiver,
                                        const Heads& heads);

  // Of one unit, relative to its layer's first byte in the slab; neighbours are merged, so equal
  // layouts give one run. Ascending in `from`.
  const std::vector<ByteRun>& runs() const { return runs_; }
  std::size_t unit_bytes() const { return unit_bytes_; }
  // Where a cache layer begins in a slab.
  std::uint64_t FromOffset(std::int32_t cache_layer) const {
    return static_cast<std::uint64_t>(cache_layer) * from_stride_;
  }
  std::uint64_t ToOffset(std::int32_t cache_layer) const {
    return static_cast<std::uint64_t>(cache_layer) * to_stride_;
  }

 private:
  std::vector<ByteRun> runs_;
  std::size_t unit_bytes_ = 0;
  std::uint64_t from_stride_ = 0;  // Bytes of a cache layer in a slab.
  std::uint64_t to_stride_ = 0;
};

}  // namespace penstock::transfer
