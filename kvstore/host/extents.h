// SPDX-License-Identifier: Apache-2.0
// Which pages of a room are free: Take hands out runs of them, the lowest that fits; what Give hands
// back joins what is free beside it.
//
// Free runs are nodes of a treap, ordered by address, that know the longest run below them: every
// call is O(log n) of the free runs, expected. Its priorities do not depend on what is asked of it,
// so no order of calls makes it deep. About 32 bytes for each free run there ever was at a time.
//
// Plain values, numbers of pages only. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace penstock::kvstore {

class Extents {
 public:
  explicit Extents(std::uint64_t pages);  // All free.

  // The first page of `pages` (at least 1, CHECKed) that follow each other. Nothing: longest() is
  // less.
  std::optional<std::uint64_t> Take(std::uint64_t pages);
  // What Take gave, or a part of it; that any of it is free already is CHECKed.
  void Give(std::uint64_t first, std::uint64_t pages);

  std::uint64_t free() const { return free_; }
  std::uint64_t longest() const { return nodes_[root_].longest; }
  std::size_t runs() const { return nodes_.size() - 1 - unused_.size(); }

 private:
  using Node = std::uint32_t;
  static constexpr Node kNone = 0;  // A node of no pages.
  struct Run {
    std::uint64_t first = 0, pages = 0;
    std::uint64_t longest = 0;  // Of itself and all below.
    std::uint32_t priority = 0;
    Node left = kNone, right = kNone;
    std::uint64_t end() const { return first + pages; }
  };

  Node New(std::uint64_t first, std::uint64_t pages);
  void Pull(Node node);
  Node Merge(Node left, Node right);
  // Runs before `first` to `left`, the others to `right`.
  void Split(Node node, std::uint64_t first, Node& left, Node& right);
  Node Insert(Node node, Node added);
  Node Erase(Node node, std::uint64_t first);
  // Of the run that begins at `first`; it stays between its neighbours.
  void Change(Node node, std::uint64_t first, std::uint64_t new_first, std::uint64_t new_pages);
  Node TakeBelow(Node node, std::uint64_t pages, std::uint64_t& first);

  const std::uint64_t pages_;
  std::uint64_t free_ = 0;
  std::uint64_t drawn_ = 0;  // Priorities.
  std::vector<Run> nodes_;   // The first is kNone.
  std::vector<Node> unused_;
  Node root_ = kNone;
};

}  // namespace penstock::kvstore
