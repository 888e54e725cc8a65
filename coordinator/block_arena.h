// SPDX-License-Identifier: Apache-2.0
// Where the store index keeps blocks: one after another in memory as they are in their chains, so
// that a lookup compares a run of them in one sweep.
//
// A strip is room for 1, 2, ..., 64 blocks in a row; a block goes behind its parent in the parent's
// strip, or, where that is full, begins one of twice the size. So chains of any length lose at most
// half of their room. A page is 64 positions cut into strips of one size. A strip that comes to be
// half empty is packed into smaller ones.
//
// Owned by its index; not thread-safe.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/key.h"
#include "coordinator/huge_memory.h"

namespace penstock::coordinator {

struct ArenaBlock {
  std::uint32_t name[4] = {};
  std::uint32_t set = 0;  // HolderSets::Set; kNobody: no block is here.

  bool Is(const CopyName& other) const {
    std::uint64_t x[2], y[2];
    std::memcpy(x, name, sizeof(x));
    std::memcpy(y, other.bytes.data(), sizeof(y));
    return ((x[0] ^ y[0]) | (x[1] ^ y[1])) == 0;
  }
  CopyName copy_name() const {
    CopyName copy;
    std::memcpy(copy.bytes.data(), name, sizeof(name));
    return copy;
  }
};
static_assert(sizeof(ArenaBlock) == 20);

class BlockArena {
 public:
  using Position = std::uint32_t;
  static constexpr Position kNowhere = 0xffffffff;
  static constexpr std::size_t kPageBlocks = 64;

  explicit BlockArena(std::size_t pages_max) : pages_max_(pages_max) {}

  ArenaBlock& at(Position at) { return PageOf(at).blocks[at % kPageBlocks]; }
  const ArenaBlock& at(Position at) const { return PageOf(at).blocks[at % kPageBlocks]; }
  // A position of one's own: behind `parent` (kNowhere: of nobody) where that can be. kNowhere: all
  // pages are full.
  Position Place(Position parent);
  void Free(Position at);

  // Packs the strip of `at` if half of it is empty, and calls moved(from, to) for each block.
  template <typename Moved>
  void Pack(Position at, const Moved& moved);

  std::size_t pages() const { return pages_; }
  std::uint64_t live(std::size_t page) const { return PageAt(page).live; }  // A bit for each block.
  std::size_t bytes() const;

 private:
  static constexpr int kOrders = 7;  // Strips of 1 << order.
  using PageId = std::uint32_t;
  struct Page {
    std::uint64_t live = 0;
    std::uint64_t taken = 0;      // A bit for each strip; as the next.
    std::uint64_t continued = 0;  // Its chain went on in another.
    std::uint32_t room = 0;       // Where it stands in rooms_, unless all is taken.
    std::int32_t order = 0;
    std::array<ArenaBlock, kPageBlocks> blocks = {};
  };
  static constexpr std::size_t kChunkPages = kHugePageBytes / sizeof(Page);
  Page& PageAt(std::size_t page) { return chunks_[page / kChunkPages][page % kChunkPages]; }
  const Page& PageAt(std::size_t page) const {
    return chunks_[page / kChunkPages][page % kChunkPages];
  }
  Page& PageOf(Position at) { return PageAt(at / kPageBlocks); }
  const Page& PageOf(Position at) const { return PageAt(at / kPageBlocks); }
  static std::uint64_t StripBits(const Page& page, Position at) {
    const auto size = std::size_t{1} << page.order;
    const std::uint64_t bits = size == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << size) - 1;
    return bits << (at % kPageBlocks / size * size);
  }
  static std::uint64_t StripBit(const Page& page, Position at) {
    return std::uint64_t{1} << (at % kPageBlocks >> page.order);
  }
  static bool AllTaken(const Page& page) {
    return static_cast<std::size_t>(std::popcount(page.taken)) == kPageBlocks >> page.order;
  }
  Position TakeStrip(int order);  // Or smaller. None of it is live.
  bool TakePage(int order);
  void GiveStrip(Position at);
  void Unlist(PageId id);

  const std::size_t pages_max_;
  std::vector<std::vector<Page, HugeAllocator<Page>>> chunks_;
  std::size_t pages_ = 0;
  std::vector<PageId> free_pages_;
  std::array<std::vector<PageId>, kOrders> rooms_;  // Pages with a free strip and one that is not.
};

template <typename Moved>
void BlockArena::Pack(Position at, const Moved& moved) {
  const Page& page = PageOf(at);
  const auto size = std::size_t{1} << page.order;
  const std::uint64_t strip = StripBits(page, at);
  const Position base = at / kPageBlocks * kPageBlocks;
  if (size < 4 || static_cast<std::size_t>(std::popcount(page.live & strip)) * 2 > size) return;
  while ((page.live & strip) != 0) {
    const int first = std::countr_zero(page.live & strip);
    const int count = std::countr_one((page.live & strip) >> first);
    const Position from = base + static_cast<Position>(first);
    // The largest power of two: what is left over is packed next.
    const int order = std::bit_width(static_cast<unsigned>(count)) - 1;
    const Position to = order < page.order ? TakeStrip(order) : kNowhere;
    if (to == kNowhere) return;
    const auto moving = Position{1} << std::min(order, PageOf(to).order);
    for (Position i = 0; i < moving; ++i) {
      this->at(to + i) = this->at(from + i);
      PageOf(to).live |= std::uint64_t{1} << (to + i) % kPageBlocks;
      moved(from + i, to + i);
      Free(from + i);
    }
  }
}

}  // namespace penstock::coordinator
