// SPDX-License-Identifier: Apache-2.0
// Host memory for the KV of sequences that had to make room, with a budget of its own.
//
// Owned by the engine's loop; not thread-safe. Outlives what it saved.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/key.h"
#include "engine/block_table.h"
#include "engine/kv_pool.h"

namespace penstock::engine {

class SwapPool {
 public:
  // One sequence's blocks. Gives its bytes back to the budget when it goes.
  class Saved {
   public:
    ~Saved() { owner_.bytes_used_ -= bytes_; }
    Saved(const Saved&) = delete;
    Saved& operator=(const Saved&) = delete;

   private:
    friend class SwapPool;
    struct Group {
      std::int32_t first_block = 0;
      std::int32_t blocks = 0;
      std::unique_ptr<std::byte[]> bytes;  // [blocks][block_bytes]
    };
    Saved(SwapPool& owner, std::size_t bytes) : owner_(owner), bytes_(bytes) {
      owner_.bytes_used_ += bytes_;
    }
    SwapPool& owner_;
    const std::size_t bytes_;
    std::vector<Group> groups_;
  };

  // At most `bytes_max` are used; memory is taken when it is needed.
  SwapPool(KvPool& pool, std::size_t bytes_max) : pool_(pool), bytes_max_(bytes_max) {}

  // Bytes that Save(blocks) would take.
  std::size_t BytesOf(const BlockTable& blocks) const;
  // A copy of all blocks; null when the budget does not have BytesOf left, or a mapped block had
  // changed. The table keeps its own.
  std::unique_ptr<Saved> Save(const BlockTable& blocks);
  // Puts them back into an empty table: those named by `chains` from the pool where it still has
  // them, else copied, and then findable again. The pool must have room for all of them.
  void Restore(const Saved& saved, const LossSpaces& spaces, std::span<const Chain> chains,
               BlockTable& blocks);

  std::size_t bytes_used() const { return bytes_used_; }

 private:
  KvPool& pool_;
  const std::size_t bytes_max_;
  std::size_t bytes_used_ = 0;
};

}  // namespace penstock::engine
