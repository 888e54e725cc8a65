// SPDX-License-Identifier: Apache-2.0
// Which blocks a full tier lets go. A policy is told what is asked for, put, read and removed; asked
// for bytes, it names victims. The store and `penstock replay` run the same objects.
//
// A prefix is only usable from its head, so a block whose parent is gone is dead weight; policies
// that know chains let go of them from the tail.
//
// What holds for every policy:
// - A pinned block is never a victim. Pin a system prompt block by block; blocks behind it go first.
// - A tenant over its quota pays first, from its own blocks: those used longest ago, each chain from
//   its tail, whatever the policy. The policy chooses once nobody is over.
// - The same calls give the same victims, in any process.
// - Memory, as measured: up to 280 bytes for each held block (reuse-density 520), and for each ghost (a
//   key that is no longer held, or never was, remembered to learn from) up to 270: of these there are
//   at most Options::ghosts_max.
//
// Owned by the loop of its tier; not thread-safe. No I/O, no clock: `now` is an argument and does not
// go back (an earlier one counts as the last).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/time.h"

namespace penstock::kvstore {

struct EvictionBlock {
  BlockKey key = {};
  std::optional<BlockKey> parent = {};  // None: the first of its chain.
  std::uint64_t bytes = 1;
  std::uint32_t tenant = 0;
  std::uint32_t tokens_before = 0;  // In its chain: recomputing it must attend to them.
  bool partial = false;  // A prompt's unfilled end. Traces have them, the store does not.
};

// A request asks for this chain, head first, be its blocks held or not.
struct AskedChain {
  std::span<const BlockKey> chain;
  bool partial_tail = false;              // The last one is a prompt's unfilled end.
  std::optional<std::int32_t> turn = {};  // 0: opens a conversation. None: inferred.
};

class EvictionPolicy {
 public:
  struct Options {
    std::uint64_t capacity_bytes = 0;  // What the tier holds when it is full.
    std::size_t ghosts_max = std::size_t{1} << 18;
    std::uint32_t block_tokens = 32;
    // Before which position a block's attention costs as much as all else in its recomputing: blocks
    // there and beyond are worth accordingly more to `reuse-density`. 0: all are worth the same.
    std::uint32_t attention_tokens = 0;
  };
  explicit EvictionPolicy(const Options& options) : options_(options) {}
  virtual ~EvictionPolicy() = default;
  EvictionPolicy(const EvictionPolicy&) = delete;
  EvictionPolicy& operator=(const EvictionPolicy&) = delete;

  virtual std::string_view name() const = 0;
  // Keys remembered that are not held.
  virtual std::size_t ghosts() const { return 0; }

  // Once per request, before its blocks are read or put: what policies that learn learn from.
  void Ask(const AskedChain& asked, MonoTime now);
  // A held block was read. False: it is not held.
  bool Use(const BlockKey& key, MonoTime now);
  // A block is held from now on; of one that is held already, as Use. May take the tier above its
  // capacity: then the caller asks for victims.
  void Put(const EvictionBlock& block, MonoTime now);
  // A block is gone for a reason of the store's own. Nothing, if it is not held.
  void Remove(const BlockKey& key, MonoTime now);

  // False: it is not held. Removing a block ends its pin.
  bool Pin(const BlockKey& key);
  bool Unpin(const BlockKey& key, MonoTime now);
  // Of this tenant's bytes; none: no limit of its own.
  void SetQuota(std::uint32_t tenant, std::optional<std::uint64_t> bytes);

  // Victims of `bytes` or a little more, appended in order; they are no longer held. How many bytes
  // they had: fewer than wanted when all that is left is pinned, or, to policies that know chains,
  // comes before what is pinned.
  std::uint64_t Evict(std::uint64_t bytes, MonoTime now, std::vector<BlockKey>& victims);

  bool Holds(const BlockKey& key) const { return slots_.contains(key); }
  std::size_t held_blocks() const { return slots_.size(); }
  std::uint64_t held_bytes() const { return held_bytes_; }
  std::uint64_t tenant_bytes(std::uint32_t tenant) const;

 protected:
  using Slot = std::uint32_t;  // Names a held block; used again once that is gone.
  static constexpr Slot kNoSlot = UINT32_MAX;
  struct Held {
    EvictionBlock block;
    std::uint32_t children = 0;  // Held ones.
    bool pinned = false;
    Slot older = kNoSlot, newer = kNoSlot;  // Of the same tenant, by last use.
  };

  const Options& options() const { return options_; }
  const Held& held(Slot slot) const { return held_[slot]; }
  Slot FindSlot(const BlockKey& key) const;
  // Neither pinned nor with a held child.
  bool IsFreeLeaf(Slot slot) const { return held_[slot].children == 0 && !held_[slot].pinned; }
  std::uint64_t asks() const { return asks_; }

 private:
  struct Tenant {
    std::uint64_t bytes = 0;
    std::optional<std::uint64_t> quota = {};
    Slot oldest = kNoSlot, newest = kNoSlot;
  };

  // What a policy makes of it. Pinned blocks are no candidates until OnUnpin.
  virtual void OnAsk(const AskedChain&, MonoTime) {}
  virtual void OnUse(Slot slot, MonoTime now) = 0;
  virtual void OnPut(Slot slot, MonoTime now) = 0;
  // Still held() during the call; `evicted`: as a victim.
  virtual void OnRemove(Slot slot, bool evicted, MonoTime now) = 0;
  virtual void OnPin(Slot slot) = 0;
  virtual void OnUnpin(Slot slot, MonoTime now) = 0;
  virtual void OnLeaf(Slot) {}  // Its last held child went.
  // One that is not pinned; kNoSlot when there is none.
  virtual Slot Victim(MonoTime now) = 0;

  MonoTime Forward(MonoTime now) { return now_ = std::max(now_, now); }
  void RemoveSlot(Slot slot, bool evicted, MonoTime now);
  Slot QuotaVictim() const;
  void Link(Slot slot);
  void Unlink(Slot slot);

  const Options options_;
  MonoTime now_ = MonoTime::min();
  std::uint64_t asks_ = 0;
  std::uint64_t held_bytes_ = 0;
  std::vector<Held> held_;
  std::vector<Slot> free_;
  absl::flat_hash_map<BlockKey, Slot> slots_;
  absl::flat_hash_map<BlockKey, std::uint32_t>
      orphans_;  // Held children of a key that is not held.
  absl::flat_hash_map<std::uint32_t, Tenant> tenants_;
  std::vector<std::uint32_t> limited_;  // Tenants with a quota, in order.
};

// In the order of tables:
//   lru            what was used longest ago;
//   s3-fifo        three queues: most new blocks pass a small one once and go (Yang et al., SOSP 2023);
//   hybrid         frequency with ageing: GreedyDual with frequency (Cherkasova, HPL-98-69, 1998);
//   reuse-density  expected reuse per byte and second held, learned (kvstore/eviction_density.h).
std::span<const std::string_view> EvictionPolicyNames();

// INVALID_ARGUMENT for a name that is not one of these, and for a capacity of 0.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(
    std::string_view name, const EvictionPolicy::Options& options);

}  // namespace penstock::kvstore
