// SPDX-License-Identifier: Apache-2.0
// Blocks of a pool for who keeps copies of them elsewhere: hears on its loop which were sealed, on
// the engine's thread which leave the pool, and can have some held where they are.
//
// On the loop's thread, as the callbacks, but for on_leaving. For pools that the host can read, or
// that are staged (CHECKed).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/event_loop.h"
#include "engine/engine_thread.h"
#include "engine/kv_pool.h"
#include "engine/slab_encoder.h"
#include "kernels/kv_quant_way.h"

namespace penstock::engine {

class BlockExport {
 public:
  struct Block {
    std::int32_t group = 0;
    KvPool::SealedBlock sealed = {};
    // As which it is wanted, where the device can do that; told by who asks.
    std::optional<kernels::KvEncoding> encoding = {};
  };
  // Either, or neither: it is gone.
  struct Held {
    const std::byte* slab = nullptr;
    SlabEncoder::Bytes encoded = nullptr;
  };
  // Where a block is that leaves the pool; each to be asked only where it is wanted, since it may
  // have to be copied there.
  struct Leaving {
    absl::FunctionRef<const std::byte*()> slab;
    absl::FunctionRef<SlabEncoder::Bytes(const kernels::KvEncoding&)> encoded;  // Null: take slab.
  };
  struct Events {
    // Some time after they were sealed; those of one step together.
    std::function<void(std::vector<Block> blocks)> on_sealed;
    // On the engine's thread; what it is told lasts until this returns.
    std::function<void(const Block& block, const Leaving& leaving)> on_leaving;
  };

  // From now on. `thread` and `loop` outlive it.
  BlockExport(Loop& loop, EngineThread& thread, Events events);
  // Waits for the engine's step at hand; what is held is let go of.
  ~BlockExport();

  // Holds those that are still in the pool; `held` hears where they are. What is encoded is the
  // caller's, and not held.
  void Hold(std::vector<Block> blocks, std::function<void(std::vector<Held>)> held);
  // Lets go of blocks that were held, once for each time.
  void Release(std::vector<Block> blocks);

 private:
  class Shared;  // With tasks that may run after the end.

  EngineThread& thread_;
  const std::shared_ptr<Shared> shared_;
};

}  // namespace penstock::engine
