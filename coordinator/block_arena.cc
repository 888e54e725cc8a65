// SPDX-License-Identifier: Apache-2.0
#include "coordinator/block_arena.h"

#include <algorithm>

#include "base/check.h"

namespace penstock::coordinator {

BlockArena::Position BlockArena::Place(Position parent) {
  int order = 0;
  if (parent != kNowhere) {
    Page& page = PageOf(parent);
    const Position next = parent + 1;
    const bool ends = next % (Position{1} << page.order) == 0;
    if (!ends) {
      const std::uint64_t bit = std::uint64_t{1} << next % kPageBlocks;
      if ((page.live & bit) == 0) {
        page.live |= bit;
        return next;
      }
    } else if ((page.continued & StripBit(page, parent)) == 0) {
      // The first child goes on with the chain; how long others are is not known.
      page.continued |= StripBit(page, parent);
      order = std::min(page.order + 1, kOrders - 1);
    }
  }
  const Position at = TakeStrip(order);
  if (at != kNowhere) PageOf(at).live |= std::uint64_t{1} << at % kPageBlocks;
  return at;
}

void BlockArena::Free(Position at) {
  Page& page = PageOf(at);
  const std::uint64_t bit = std::uint64_t{1} << at % kPageBlocks;
  CHECK((page.live & bit) != 0);
  page.live &= ~bit;
  this->at(at) = ArenaBlock();
  if ((page.live & StripBits(page, at)) == 0) GiveStrip(at);
}

BlockArena::Position BlockArena::TakeStrip(int order) {
  while (rooms_[static_cast<std::size_t>(order)].empty() && !TakePage(order)) {
    if (order-- == 0) return kNowhere;
  }
  const PageId id = rooms_[static_cast<std::size_t>(order)].back();
  Page& page = PageAt(id);
  const int strip = std::countr_one(page.taken);
  page.taken |= std::uint64_t{1} << strip;
  if (AllTaken(page)) Unlist(id);
  return id * static_cast<Position>(kPageBlocks) + (static_cast<Position>(strip) << order);
}

bool BlockArena::TakePage(int order) {
  if (free_pages_.empty()) {
    if (pages_ >= pages_max_) return false;
    if (pages_ % kChunkPages == 0) chunks_.emplace_back(kChunkPages);
    free_pages_.push_back(static_cast<PageId>(pages_++));
  }
  const PageId id = free_pages_.back();
  free_pages_.pop_back();
  Page& page = PageAt(id);
  page.order = order;
  std::vector<PageId>& room = rooms_[static_cast<std::size_t>(order)];
  page.room = static_cast<std::uint32_t>(room.size());
  room.push_back(id);
  return true;
}

void BlockArena::GiveStrip(Position at) {
  const auto id = static_cast<PageId>(at / kPageBlocks);
  Page& page = PageAt(id);
  const bool was_full = AllTaken(page);
  page.taken &= ~StripBit(page, at);
  page.continued &= ~StripBit(page, at);
  if (page.taken == 0) {
    if (!was_full) Unlist(id);
    free_pages_.push_back(id);
  } else if (was_full) {
    std::vector<PageId>& room = rooms_[static_cast<std::size_t>(page.order)];
    page.room = static_cast<std::uint32_t>(room.size());
    room.push_back(id);
  }
}

void BlockArena::Unlist(PageId id) {
  const Page& page = PageAt(id);
  std::vector<PageId>& room = rooms_[static_cast<std::size_t>(page.order)];
  PageAt(room.back()).room = page.room;
  room[page.room] = room.back();
  room.pop_back();
}

std::size_t BlockArena::bytes() const {
  std::size_t bytes = chunks_.size() * kHugePageBytes + chunks_.capacity() * sizeof(chunks_[0]) +
                      free_pages_.capacity() * sizeof(PageId);
  for (const std::vector<PageId>& room : rooms_) bytes += room.capacity() * sizeof(PageId);
  return bytes;
}

}  // namespace penstock::coordinator
