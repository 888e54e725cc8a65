// SPDX-License-Identifier: Apache-2.0
#include "engine/block_feed.h"

#include <utility>

namespace penstock::engine {

struct BlockFeed::Shared : std::enable_shared_from_this<Shared> {
  Shared(Loop& own_loop, EngineThread& own_thread, OnChanges own_changes, Duration own_every)
      : loop(own_loop), thread(own_thread), on_changes(std::move(own_changes)), every(own_every) {}

  // On the loop: takes what has changed, in a while.
  void TakeSoon() {
    if (!open) return;
    timer = loop.At(loop.Now() + every, [self = shared_from_this()] {
      self->TakeWith([](BlockReporter& from) { return from.Take(); });
    });
  }
  void TakeWith(std::function<std::vector<BlockEvent>(BlockReporter&)> take) {
    thread.Post([self = shared_from_this(), take = std::move(take)](Engine&) {
      if (self->reporter == nullptr) return;
      std::vector<BlockEvent> changes = take(*self->reporter);
      if (changes.empty()) return;
      self->loop.Post([self, changes = std::move(changes)]() mutable {
        if (self->open) self->on_changes(std::move(changes));
      });
    });
  }

  Loop& loop;
  EngineThread& thread;
  const OnChanges on_changes;
  const Duration every;
  bool open = true;  // On the loop alone, as timer.
  Loop::TimerId timer{};
  std::unique_ptr<BlockReporter> reporter;  // On the engine's thread alone.
};

BlockFeed::BlockFeed(Loop& loop, EngineThread& thread, const LossSpaces& spaces, LossClass most,
                     OnChanges on_changes, Duration every)
    : loop_(loop),
      thread_(thread),
      shared_(std::make_shared<Shared>(loop, thread, std::move(on_changes), every)) {
  // The reporter belongs to what is captured: no cycle.
  thread_.Post([shared = shared_, spaces, most](Engine& engine) {
    const auto changed = [weak = std::weak_ptr(shared)] {
      const std::shared_ptr<Shared> self = weak.lock();
      if (self != nullptr) self->loop.Post([self] { self->TakeSoon(); });
    };
    shared->reporter = std::make_unique<BlockReporter>(engine.pool(), spaces, most, changed);
  });
}

BlockFeed::~BlockFeed() {
  shared_->open = false;
  loop_.CancelTimer(shared_->timer);
  // The pool outlives its observer.
  thread_.Run([this](Engine&) { shared_->reporter.reset(); });
}

void BlockFeed::Snapshot() {
  shared_->TakeWith([](BlockReporter& from) { return from.TakeSnapshot(); });
}

}  // namespace penstock::engine
