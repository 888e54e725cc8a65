// SPDX-License-Identifier: Apache-2.0
// Blocks of prompts that are brought while an engine computes the same prompts: the engine goes from
// the first block on, blocks come from the last one to the first, until both meet; a source that is too
// slow is left behind by that. A fast one is let alone until it has had its time (base/fetch_pace.h):
// then all is there as the engine begins.
//
// Blocks of a fast one that lie in a node's memory on this host are used there, mapped. Of a slow one
// all are copied: those come late, beside pages that are being computed, and a decode worker which
// waits for them fetches nothing itself.
//
// On the loop.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/event_loop.h"
#include "base/fetch_pace.h"
#include "base/mapped_block.h"
#include "base/time.h"
#include "engine/coming.h"
#include "worker/block_importer.h"

namespace penstock::worker {

class PromptImports {
 public:
  using Key = std::uint64_t;  // A prompt: the caller's number, never used twice.
  struct Events {
    // Once, not from inside Begin: compute the prompt now. What coming() says is still on its way.
    std::function<void()> compute;
    // coming() is another, since the engine has computed some, or nothing comes any more.
    std::function<void()> changed;
    // Once, when nothing comes any more; before `compute`, unless that was earlier. What came is in the
    // pool.
    std::function<void(const BlockImporter::Imported& imported)> done;
  };

  // `loop` outlives this.
  explicit PromptImports(Loop& loop) : loop_(loop) {}
  ~PromptImports();
  // What brings blocks; null: nothing does. Outlives the last Begin. With `import_first` nothing is
  // computed before all has come.
  void set_importer(BlockImporter* importer, bool import_first = false) {
    importer_ = importer;
    import_first_ = import_first;
  }

  // Of sources that end behind the prompt's chains nothing comes. The order's `backwards` and `map` are
  // set here.
  void Begin(Key key, BlockImporter::ImportOrder order, Events events);
  // What an engine that computes the prompt needs to know of it now; nothing of unknown ones.
  engine::Coming coming(Key key) const;
  // All of the prompt before `block` is there or computed. Unknown ones are ignored.
  void Reached(Key key, std::int32_t block);
  // The prompt is over: nothing more is told of it, and mapped blocks are let go of, which until then
  // are found in the pool. Unknown ones are ignored.
  void End(Key key);

 private:
  struct Prompt {
    Events events;
    BlockImporter::ImportId import = 0;
    bool importing = false;
    bool computing = false;
    MonoTime begun = {};
    FetchPace pace = {};
    std::int32_t end_block = 0;
    Loop::TimerId timer = {};
    std::vector<std::shared_ptr<const MappedBlock>> mapped = {};
  };
  void Compute(Key key);
  void OnImported(Key key, const BlockImporter::Imported& imported);

  Loop& loop_;
  BlockImporter* importer_ = nullptr;
  bool import_first_ = false;
  std::map<Key, Prompt> prompts_;
};

}  // namespace penstock::worker
