// SPDX-License-Identifier: Apache-2.0
// Keeps copies of a worker's blocks at its store node: asks which of them the node would take,
// encodes those into staging memory, once, and offers the frames, which the node reads and
// acknowledges.
//
//   sealed or leaving -> asked -> wanted -> held in the pool -> encoded, let go of -> offered
//   -> taken
//
// A block that is sealed is offered while it lies in the pool (write-through). One that leaves the
// pool and is not known to be kept is encoded before its room is used again (demotion), while
// staging memory has a free slot; else it is dropped, and counted.
//
// A frame is offered when its turn on the link to the node has come (transfer/link_turns.h), behind
// all that somebody waits for; the turn ends with the node's answer.
//
// Bounded: queue_max blocks wait, staging has `slots` frames. Beyond, blocks are dropped: it is a
// cache.
//
// On the loop, but for Leaving, which is for the pool's thread. Encoding is a task of `tasks`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/kv_spec.h"
#include "base/loss_class.h"
#include "base/spans.h"
#include "base/task_pool.h"
#include "base/time.h"
#include "kvstore/client/codec_choice.h"
#include "kvstore/codecs/codec.h"
#include "kvstore/node/store_links.h"
#include "transfer/life.h"
#include "transfer/link.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

class Keeper {
 public:
  // How copies are made. Of class kExact exactly for lossless codecs; blocks of a worse class stay
  // of theirs.
  struct Form {
    CodecId codec = CodecId::kRaw;
    LossClass loss = LossClass::kExact;
  };
  struct Options {
    std::vector<Form> forms = {{}};  // One copy of each block by each. At least one, at most 8.
    // Lossless copies are made by what codec_choice.h chooses, whatever their form says.
    bool choose = false;
    std::vector<std::byte> secret = {};
    bool at_seal = true;  // Else blocks are offered as they leave the pool.
    std::size_t queue_max = std::size_t{1} << 16;
    std::size_t kept_max = std::size_t{1} << 18;          // Keys known to be kept.
    Duration pause_min = std::chrono::milliseconds(100);  // Before the node is tried again.
    Duration pause_max = std::chrono::seconds(2);
    Duration turn_within = std::chrono::seconds(10);  // Then a frame is dropped.
    SpanRing* spans = nullptr;                        // Null: not traced. Outlives the keeper.
  };
  struct Block {
    std::int32_t group = 0;
    BlockKey key = {};                 // (namespace, chain).
    std::optional<Chain> parent = {};  // None: a first block.
    std::int32_t index = 0;            // In its chain.
    std::uint32_t tenant = 0;
    std::uint8_t form = 0;          // By which it is kept; the keeper's own.
    CodecId codec = CodecId::kRaw;  // Of its frame, once it is to be made; the keeper's own.
    // As which `hold` may give it; the keeper's own. None: as its slab.
    std::optional<kernels::KvEncoding> encoding = {};
    bool by_host = false;  // What its device makes of it is no frame; the keeper's own.
    bool measure = false;  // By every codec; the keeper's own.
  };
  // Where a block is, or, where its pool's device made it, its encoding (EncodeBlock of
  // kernels/kv_encoding.h). Neither: it has left the pool.
  struct Held {
    const std::byte* slab = nullptr;
    std::shared_ptr<const std::byte[]> encoded = nullptr;
  };
  // The pool that the blocks lie in. `hold` asks its thread to keep those that are still there
  // where they are, and tells on the loop where; `release` lets go of those that have a slab.
  struct Pool {
    std::vector<PageLayout> layouts = {};  // Of each group.
    std::function<void(std::vector<Block> blocks, std::function<void(std::vector<Held>)> held)>
        hold = nullptr;
    std::function<void(std::vector<Block> blocks)> release = nullptr;
  };
  // Memory that the node reads frames from: slots of SlotBytes.
  struct Staging {
    transfer::SegmentId segment{};
    std::span<std::byte> memory = {};
  };
  static std::size_t SlotBytes(const Options& options, const std::vector<PageLayout>& layouts);

  struct Stats {
    std::uint64_t sealed = 0;
    std::uint64_t wanted = 0;
    std::uint64_t taken = 0;
    std::uint64_t bytes_taken = 0;        // Of frames.
    std::uint64_t refused = 0;            // Offered, and not taken.
    std::uint64_t dropped = 0;            // The queue was full, or the block had left the pool.
    std::uint64_t demoted = 0;            // Encoded as they left the pool.
    std::uint64_t demotions_dropped = 0;  // Left the pool with no slot free.
    std::uint64_t encoded_by_device = 0;  // The pool's; all others by this process.
    double encode_seconds = 0;
  };
  // Frames that came to this worker, as CodecChoice::Came.
  void Came(Tier tier, transfer::Kind kind, std::size_t bytes, Duration took);
  const CodecChoice& choice() const { return choice_; }

  // All outlive the keeper. `spaces` are those of the pool's blocks; others are not kept.
  Keeper(Loop& loop, StoreLinks& links, transfer::LinkTurns& turns, TaskPool& tasks,
         const LossSpaces& spaces, Pool pool, Staging staging, Options options);
  // Waits for what is being encoded.
  ~Keeper();

  // Where copies go from now on; none: nowhere.
  void SetStore(std::optional<StoreAddress> store);
  // Blocks that are full now, in the pool.
  void Sealed(std::vector<Block> blocks);
  // On the pool's thread, which calls nothing else here: `block` is about to be gone; where a copy
  // is to be kept, slab() is where it is until this returns, and encoded(...) what its pool's device
  // made of it, or null.
  void Leaving(
      const Block& block, absl::FunctionRef<const std::byte*()> slab,
      absl::FunctionRef<std::shared_ptr<const std::byte[]>(const kernels::KvEncoding&)> encoded);

  Stats stats() const;
  // Nothing is queued or under way.
  bool idle() const;

 private:
  using Slot = std::uint32_t;
  struct Encoded {
    Block block;
    Slot slot = 0;
    std::size_t bytes = 0;  // Of the frame; 0: it could not be encoded.
    CodecId codec = CodecId::kRaw;
    bool by_device = false;
    bool needs_slab = false;  // It has bytes 0, but its slab would make a frame.
    MonoTime begun = {};
    Duration took = {};
  };
  struct Shared;  // With the pool's thread and tasks.

  // The copies that a block is kept as, one for each form that makes another.
  std::vector<Block> CopiesOf(const Block& block) const;
  LossClass LossOf(const Block& copy) const;
  BlockKey CopyKey(const Block& copy) const;
  void Connect();
  void OnLink(const StoreAddress& store, absl::StatusOr<StoreLink*> link);
  void Lost();
  void Pump();
  void Ask();
  void OnWant(const std::vector<Block>& asked, const absl::StatusOr<StoreMessage>& answer);
  void HoldWanted();
  void Encode(std::vector<Block> blocks, std::vector<Held> held);
  void OnEncoded(const Encoded& encoded);
  void OnDemoted(const Encoded& encoded);
  void Offer(const Encoded& encoded);
  void Send(const Encoded& encoded);
  void TraceEncode(const Encoded& encoded) const;
  void OnMeasured(const std::vector<CodecChoice::Sample>& samples, MonoTime begun);
  CodecId CodecFor(const Block& copy) const;
  void FreeSlot(Slot slot);
  Encoded EncodeInto(Slot slot, const Block& block, const Held& held, CodecScratch& scratch) const;

  Loop& loop_;
  StoreLinks& links_;
  transfer::LinkTurns& turns_;
  TaskPool& tasks_;
  const Pool pool_;
  const Staging staging_;
  const Options options_;
  const std::size_t slot_bytes_;
  const LossSpaces spaces_;
  // Of copies, by group and class.
  const std::vector<std::array<Namespace, kLossClasses>> copy_spaces_;
  std::optional<StoreAddress> store_;
  StoreLink* link_ = nullptr;
  bool connecting_ = false;
  Duration pause_;
  Loop::TimerId retry_{};
  std::deque<Block> queue_;   // Sealed, not asked about.
  std::deque<Block> wanted_;  // By the node.
  bool asking_ = false;
  std::size_t holding_ = 0;  // Blocks asked of the pool.
  std::size_t offered_ = 0;
  std::vector<transfer::LinkTurns::Turn> slot_turns_;  // By slot: of the frame that is in it.
  Stats stats_;
  CodecChoice choice_;
  std::uint64_t encodes_ = 0;
  const std::shared_ptr<Shared> shared_;
  transfer::Life life_;
};

}  // namespace penstock::kvstore
