// SPDX-License-Identifier: Apache-2.0
// Block changes of a pool, brought from its engine's thread to the loop of its worker: gathered for
// `every`, then handed over at once.
//
// On the loop's thread, as the callback.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/event_loop.h"
#include "base/loss_class.h"
#include "base/time.h"
#include "engine/block_reporter.h"
#include "engine/engine_thread.h"

namespace penstock::engine {

class BlockFeed {
 public:
  using OnChanges = std::function<void(std::vector<BlockEvent> changes)>;

  // From now on; blocks sealed before are not known. Of `spaces`, classes up to `most`. `thread`
  // and `loop` outlive the feed.
  BlockFeed(Loop& loop, EngineThread& thread, const LossSpaces& spaces, LossClass most,
            OnChanges on_changes, Duration every = std::chrono::milliseconds(10));
  // Waits for the engine's step at hand.
  ~BlockFeed();

  // Hands over all that is held, after the changes so far.
  void Snapshot();

 private:
  struct Shared;  // With tasks that may run after the feed's end.

  Loop& loop_;
  EngineThread& thread_;
  const std::shared_ptr<Shared> shared_;
};

}  // namespace penstock::engine
