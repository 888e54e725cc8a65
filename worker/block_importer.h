// SPDX-License-Identifier: Apache-2.0
// What brings blocks of prompts into a worker's pool (StorePart), as those who ask for them see it.
//
// On its loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/key.h"
#include "base/loss_class.h"
#include "base/mapped_block.h"
#include "kvstore/client/fetcher.h"

namespace penstock::worker {

class BlockImporter {
 public:
  // Blocks of a prompt, from the first one on, and where they may be had.
  struct ImportOrder {
    std::vector<Chain> chains = {};  // Of the prompt's full blocks.
    std::vector<kvstore::Fetcher::Source> sources = {};
    LossClass accepts = LossClass::kExact;  // Of blocks that the pool has.
    std::uint32_t tenant = 0;               // Whose they are.
    // The last one first, each found in the pool as it comes: for who computes the same prompt
    // meanwhile, from the front.
    bool backwards = false;
    // Blocks that lie in a node's memory on this host, in the pages of the pool, are used there;
    // never where the pool is staged.
    bool map = true;
  };
  struct Imported {
    std::int32_t first_block = 0;  // Before: they were in the pool.
    kvstore::Fetcher::Outcome fetched = {};
    // Those of the prompt that are mapped, of whichever import: found as long as somebody has them.
    std::vector<std::shared_ptr<const MappedBlock>> mapped = {};
  };
  using ImportDone = std::function<void(const Imported& imported)>;
  using ImportId = std::uint64_t;
  // Of an import's blocks, those of each group counted by themselves.
  struct Progress {
    std::int32_t there = 0;
    std::int32_t all = 0;  // 0: not known yet.
  };

  virtual ~BlockImporter() = default;
  // Brings what can be had into the pool, sealed, where the engine finds it. `done` is called once,
  // not from inside, in any case; no later than the sources' deadlines but for a read that must end.
  virtual ImportId Import(ImportOrder order, ImportDone done) = 0;
  // Of an import that goes backwards: blocks before `first_block` are computed by now. Unknown ones
  // are ignored.
  virtual void Want(ImportId id, std::int32_t first_block) = 0;
  virtual Progress progress(ImportId id) const = 0;
  // Ends one early, with what has come. Unknown ones are ignored.
  virtual void Cancel(ImportId id) = 0;
};

}  // namespace penstock::worker
