// SPDX-License-Identifier: Apache-2.0
// S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP
// 2023): new blocks enter a small queue of a tenth of the capacity. At its end those that were used
// twice or more go on to the main queue, the others are victims, and their keys become ghosts; a ghost
// that is put again enters the main queue. At the end of the main queue a block that was used goes
// back to its beginning, at the price of one of its (at most three) uses; one that was not is a
// victim. There are ghosts for as many bytes as the main queue's nine tenths, and at most ghosts_max.
#pragma once

#include <cstdint>
#include <list>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kvstore/eviction.h"

namespace penstock::kvstore {

class S3FifoPolicy final : public EvictionPolicy {
 public:
  explicit S3FifoPolicy(const Options& options)
      : EvictionPolicy(options), small_bytes_max_(options.capacity_bytes / 10) {}
  std::string_view name() const override { return "s3-fifo"; }
  std::size_t ghosts() const override { return ghost_places_.size(); }

 private:
  struct Queue {
    std::list<Slot> slots;    // Oldest first; pinned ones until their turn comes.
    std::uint64_t bytes = 0;  // Of those that are not pinned.
  };
  struct Place {
    Queue* queue = nullptr;
    std::list<Slot>::iterator at = {};
    bool aside = false;  // Pinned, and its turn has come: not in the queue.
    std::uint32_t uses = 0;
  };
  struct Ghost {
    BlockKey key;
    std::uint64_t bytes;
  };

  void OnUse(Slot slot, MonoTime now) override;
  void OnPut(Slot slot, MonoTime now) override;
  void OnRemove(Slot slot, bool evicted, MonoTime now) override;
  void OnPin(Slot slot) override;
  void OnUnpin(Slot slot, MonoTime now) override;
  Slot Victim(MonoTime now) override;

  void SetPinnedAside(Queue& queue);
  void Append(Slot slot, Queue& queue);
  void Take(Slot slot);
  void Remember(const EvictionBlock& block);

  const std::uint64_t small_bytes_max_;
  Queue small_, main_;
  std::vector<Place> places_;  // By slot.
  std::list<Ghost> ghosts_;    // Oldest first.
  std::uint64_t ghost_bytes_ = 0;
  absl::flat_hash_map<BlockKey, std::list<Ghost>::iterator> ghost_places_;
};

}  // namespace penstock::kvstore
