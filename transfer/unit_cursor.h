// SPDX-License-Identifier: Apache-2.0
// Walks over the bytes of a read in their order, in pieces that are contiguous on both sides.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "transfer/link.h"

namespace penstock::transfer {

class UnitCursor {
 public:
  struct Piece {
    std::size_t unit = 0;
    std::uint64_t from = 0;   // Offset in the segment.
    std::byte* to = nullptr;  // Null where the unit's is.
    std::size_t bytes = 0;
  };

  // `units` outlive the cursor.
  explicit UnitCursor(std::span<const Unit> units) : units_(units) { SkipEmpty(); }

  bool done() const { return unit_ == units_.size(); }
  // What comes next, at most `bytes_max`. Not when done.
  Piece Next(std::size_t bytes_max) const {
    const Unit& unit = units_[unit_];
    const ByteRun& run = unit.runs[run_];
    return {.unit = unit_,
            .from = unit.from + run.from + offset_,
            .to = unit.to == nullptr ? nullptr : unit.to + run.to + offset_,
            .bytes = std::min<std::size_t>(bytes_max, run.bytes - offset_)};
  }
  // At most the bytes of Next.
  void Advance(std::size_t bytes) {
    offset_ += static_cast<std::uint32_t>(bytes);
    if (offset_ < units_[unit_].runs[run_].bytes) return;
    offset_ = 0;
    ++run_;
    SkipEmpty();
  }

 private:
  void SkipEmpty() {
    for (; unit_ < units_.size(); ++unit_, run_ = 0) {
      const std::span<const ByteRun> runs = units_[unit_].runs;
      while (run_ < runs.size() && runs[run_].bytes == 0) ++run_;
      if (run_ < runs.size()) return;
    }
  }

  std::span<const Unit> units_;
  std::size_t unit_ = 0;
  std::size_t run_ = 0;
  std::uint32_t offset_ = 0;
};

}  // namespace penstock::transfer
