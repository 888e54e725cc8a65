// SPDX-License-Identifier: Apache-2.0
#include "kvstore/host/extents.h"

#include "base/check.h"

namespace penstock::kvstore {
namespace {

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection that looks like chance.
std::uint64_t Mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

Extents::Extents(std::uint64_t pages) : pages_(pages), free_(pages), nodes_(1) {
  if (pages > 0) root_ = New(0, pages);
}

std::optional<std::uint64_t> Extents::Take(std::uint64_t pages) {
  CHECK(pages > 0);
  if (longest() < pages) return std::nullopt;
  std::uint64_t first = 0;
  root_ = TakeBelow(root_, pages, first);
  free_ -= pages;
  return first;
}

Extents::Node Extents::TakeBelow(Node node, std::uint64_t pages, std::uint64_t& first) {
  Run& run = nodes_[node];
  if (nodes_[run.left].longest >= pages) {
    run.left = TakeBelow(run.left, pages, first);
  } else if (run.pages >= pages) {
    first = run.first;
    run.first += pages;
    run.pages -= pages;
    if (run.pages == 0) {
      unused_.push_back(node);
      return Merge(run.left, run.right);
    }
  } else {
    run.right = TakeBelow(run.right, pages, first);
  }
  Pull(node);
  return node;
}

void Extents::Give(std::uint64_t first, std::uint64_t pages) {
  CHECK(pages > 0 && pages <= pages_ && first <= pages_ - pages);
  const std::uint64_t end = first + pages;
  Node before = kNone, behind = kNone;
  for (Node node = root_; node != kNone;) {
    const Run& run = nodes_[node];
    if (run.first < first) {
      before = node;
      node = run.right;
    } else {
      behind = node;
      node = run.left;
    }
  }
  CHECK(before == kNone || nodes_[before].end() <= first);
  CHECK(behind == kNone || nodes_[behind].first >= end);
  free_ += pages;
  const bool joins_before = before != kNone && nodes_[before].end() == first;
  const bool joins_behind = behind != kNone && nodes_[behind].first == end;
  if (joins_before) {
    std::uint64_t grown = nodes_[before].pages + pages;
    if (joins_behind) {
      grown += nodes_[behind].pages;
      root_ = Erase(root_, end);
    }
    Change(root_, nodes_[before].first, nodes_[before].first, grown);
  } else if (joins_behind) {
    Change(root_, end, first, nodes_[behind].pages + pages);
  } else {
    root_ = Insert(root_, New(first, pages));
  }
}

Extents::Node Extents::New(std::uint64_t first, std::uint64_t pages) {
  Node node = static_cast<Node>(nodes_.size());
  if (unused_.empty()) {
    CHECK(nodes_.size() <= UINT32_MAX);
    nodes_.emplace_back();
  } else {
    node = unused_.back();
    unused_.pop_back();
  }
  nodes_[node] = {.first = first,
                  .pages = pages,
                  .longest = pages,
                  .priority = static_cast<std::uint32_t>(Mix(drawn_++))};
  return node;
}

void Extents::Pull(Node node) {
  Run& run = nodes_[node];
  run.longest = run.pages;
  for (const Node child : {run.left, run.right}) {
    if (nodes_[child].longest > run.longest) run.longest = nodes_[child].longest;
  }
}

Extents::Node Extents::Merge(Node left, Node right) {
  if (left == kNone) return right;
  if (right == kNone) return left;
  const bool left_on_top = nodes_[left].priority > nodes_[right].priority;
  const Node top = left_on_top ? left : right;
  if (left_on_top) {
    nodes_[top].right = Merge(nodes_[top].right, right);
  } else {
    nodes_[top].left = Merge(left, nodes_[top].left);
  }
  Pull(top);
  return top;
}

void Extents::Split(Node node, std::uint64_t first, Node& left, Node& right) {
  if (node == kNone) {
    left = right = kNone;
    return;
  }
  Run& run = nodes_[node];
  if (run.first < first) {
    left = node;
    Split(run.right, first, run.right, right);
  } else {
    right = node;
    Split(run.left, first, left, run.left);
  }
  Pull(node);
}

Extents::Node Extents::Insert(Node node, Node added) {
  if (node == kNone) return added;
  Run& run = nodes_[node];
  Run& other = nodes_[added];
  if (other.priority > run.priority) {
    Split(node, other.first, other.left, other.right);
    Pull(added);
    return added;
  }
  Node& child = other.first < run.first ? run.left : run.right;
  child = Insert(child, added);
  Pull(node);
  return node;
}

Extents::Node Extents::Erase(Node node, std::uint64_t first) {
  Run& run = nodes_[node];
  if (run.first == first) {
    unused_.push_back(node);
    return Merge(run.left, run.right);
  }
  Node& child = first < run.first ? run.left : run.right;
  child = Erase(child, first);
  Pull(node);
  return node;
}

void Extents::Change(Node node, std::uint64_t first, std::uint64_t new_first,
                     std::uint64_t new_pages) {
  Run& run = nodes_[node];
  if (run.first == first) {
    run.first = new_first;
    run.pages = new_pages;
  } else {
    Change(first < run.first ? run.left : run.right, first, new_first, new_pages);
  }
  Pull(node);
}

}  // namespace penstock::kvstore
