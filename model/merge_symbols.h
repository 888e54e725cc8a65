// SPDX-License-Identifier: Apache-2.0
// The loop both tokenizer schemes share: of all neighbours that may merge, the pair of the lowest
// rank merges first, the leftmost among equals, until none is left.
//
// Pure functions; any thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <queue>
#include <tuple>
#include <vector>

#include "base/key.h"

namespace penstock::model {

struct Symbol {
  TokenId token = -1;     // -1: no token has this text.
  std::size_t begin = 0;  // Its text, as offsets.
  std::size_t bytes = 0;
};

struct Merge {
  static constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();
  std::int32_t rank = kNone;
  TokenId token = -1;
};

// Up to here looking at every pair for every merge is faster than a heap.
inline constexpr std::size_t kScannedSymbolsMax = 48;

namespace internal {

// O(n^2), so only for few symbols.
template <typename Lookup>
void MergeByScan(std::vector<Symbol>* symbols, const Lookup& lookup) {
  std::vector<Symbol>& s = *symbols;
  Merge merges[kScannedSymbolsMax];  // Of s[i] and s[i + 1].
  std::size_t count = s.size();
  for (std::size_t i = 0; i + 1 < count; ++i) merges[i] = lookup(s[i], s[i + 1]);
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == Merge::kNone) break;
    s[best].token = merges[best].token;
    s[best].bytes += s[best + 1].bytes;
    std::copy(s.begin() + best + 2, s.begin() + count, s.begin() + best + 1);
    --count;
    std::copy(merges + best + 1, merges + count, merges + best);
    if (best + 1 < count) merges[best] = lookup(s[best], s[best + 1]);
    if (best > 0) merges[best - 1] = lookup(s[best - 1], s[best]);
  }
  s.resize(count);
}

// O(n log n).
template <typename Lookup>
void MergeByHeap(std::vector<Symbol>* symbols, const Lookup& lookup) {
  std::vector<Symbol>& s = *symbols;
  const std::size_t end = s.size();
  struct Links {
    std::size_t previous, next;
  };
  std::vector<Links> links(end);
  for (std::size_t i = 0; i < end; ++i) links[i] = {i == 0 ? end : i - 1, i + 1};
  struct Candidate {
    Merge merge;
    std::size_t left, right, bytes;
    bool operator<(const Candidate& other) const {  // The top of the heap is the greatest.
      return std::tie(merge.rank, left) > std::tie(other.merge.rank, other.left);
    }
  };
  std::vector<Candidate> first;
  first.reserve(end);
  const auto candidate = [&](std::size_t left, std::size_t right) {
    return Candidate{lookup(s[left], s[right]), left, right, s[left].bytes + s[right].bytes};
  };
  for (std::size_t i = 0; i + 1 < end; ++i) {
    const Candidate c = candidate(i, i + 1);
    if (c.merge.rank != Merge::kNone) first.push_back(c);
  }
  std::priority_queue<Candidate> heap(std::less<Candidate>(), std::move(first));
  while (!heap.empty()) {
    const Candidate c = heap.top();
    heap.pop();
    // A symbol that was merged away has no bytes, one that grew has more: the candidate is stale.
    if (s[c.left].bytes == 0 || s[c.right].bytes == 0 ||
        s[c.left].bytes + s[c.right].bytes != c.bytes) {
      continue;
    }
    s[c.left].token = c.merge.token;
    s[c.left].bytes = c.bytes;
    s[c.right].bytes = 0;
    const std::size_t previous = links[c.left].previous;
    const std::size_t next = links[c.right].next;
    links[c.left].next = next;
    if (next < end) {
      links[next].previous = c.left;
      const Candidate right = candidate(c.left, next);
      if (right.merge.rank != Merge::kNone) heap.push(right);
    }
    if (previous < end) {
      const Candidate left = candidate(previous, c.left);
      if (left.merge.rank != Merge::kNone) heap.push(left);
    }
  }
  std::erase_if(s, [](const Symbol& symbol) { return symbol.bytes == 0; });
}

}  // namespace internal

// Merges `symbols` (none empty) in place. `lookup(left, right)` gives the Merge of two neighbours.
template <typename Lookup>
void MergeSymbols(std::vector<Symbol>* symbols, const Lookup& lookup) {
  if (symbols->size() <= kScannedSymbolsMax) {
    internal::MergeByScan(symbols, lookup);
  } else {
    internal::MergeByHeap(symbols, lookup);
  }
}

}  // namespace penstock::model
