// SPDX-License-Identifier: Apache-2.0
// A sequence whose tokens are known beforehand, fed piece by piece: for who wants the logits that a
// model gives on the way, or the KV that it makes.
//
// One thread at a time. Runner and pool, which are each other's, must outlive it.
#pragma once

#include <cstdint>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "base/key.h"
#include "engine/block_table.h"
#include "engine/kv_pool.h"
#include "engine/step_runner.h"

namespace penstock::engine {

class GivenText {
 public:
  GivenText(StepRunner& runner, KvPool& pool) : runner_(runner), pool_(pool), blocks_(pool) {}

  // Of the token at `position` + 1: [vocab], valid during the call.
  using Row = absl::FunctionRef<void(std::int32_t position, std::span<const float> logits)>;
  // Appends `tokens`, in passes as large as runner and pool allow. Ids are in range. Blocks that no
  // later token sees are given back as it goes. RESOURCE_EXHAUSTED when the pool does not have what
  // BytesToHold (block_table.h) says; what was fed until then stays.
  absl::Status Feed(std::span<const TokenId> tokens);
  // The same, and calls row for each of them, in ascending order.
  absl::Status Score(std::span<const TokenId> tokens, Row row);
  // As Score, but row is called by several threads at a time, in any order.
  absl::Status ScoreAtOnce(std::span<const TokenId> tokens, Row row);

  // Makes this empty sequence that of `other`, whose blocks it holds, too. `other` ends with a
  // block.
  void ShareFrom(const GivenText& other);
  // Makes this empty sequence one of `position` tokens, which end a block, and holds the blocks
  // that the next token sees; what is in them is for the caller to write. RESOURCE_EXHAUSTED as
  // Feed.
  absl::Status StartAt(std::int32_t position);

  std::int32_t position() const { return position_; }
  const BlockTable& blocks() const { return blocks_; }

 private:
  enum class Rows { kNone, kInOrder, kAtOnce };
  absl::Status Run(std::span<const TokenId> tokens, Rows rows, Row row);

  StepRunner& runner_;
  KvPool& pool_;
  BlockTable blocks_;
  std::int32_t position_ = 0;
};

}  // namespace penstock::engine
