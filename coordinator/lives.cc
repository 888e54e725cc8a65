// SPDX-License-Identifier: Apache-2.0
#include "coordinator/lives.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace penstock::coordinator {
namespace {

void Set(std::vector<std::uint64_t>& bits, std::size_t i) {
  bits[i / 64] |= std::uint64_t{1} << (i % 64);
}
void Unset(std::vector<std::uint64_t>& bits, std::size_t i) {
  bits[i / 64] &= ~(std::uint64_t{1} << (i % 64));
}

}  // namespace

absl::Status Lives::NewColumn(Member member, Column& column) {
  if (free_columns_.empty()) {
    if (column_members_.size() >= kColumnsMax) {
      return absl::ResourceExhaustedError(absl::StrCat("the index has columns for ", kColumnsMax,
                                                       " lives, ", dead_columns_.size(),
                                                       " of them dropped and not yet swept"));
    }
    free_columns_.push_back(static_cast<Column>(column_members_.size()));
    column_members_.push_back(0);
    column_held_.push_back(0);
    if (column_members_.size() > words() * 64) {
      visible_bits_.resize(words() * 2);
      dead_bits_.resize(words());
    }
  }
  column = free_columns_.back();
  free_columns_.pop_back();
  column_members_[column] = member;
  column_held_[column] = 0;
  return absl::OkStatus();
}

void Lives::KillColumn(Column column) {
  Unset(visible_bits_, column);
  if (column_held_[column] == 0) {
    free_columns_.push_back(column);
    return;
  }
  Set(dead_bits_, column);
  dead_columns_.push_back({column, parts_});
}

absl::Status Lives::Add(Member member) {
  if (member >= views_.size()) views_.resize(member + 1);
  Drop(member);
  View view = {.added = true};
  if (absl::Status status = NewColumn(member, view.column); !status.ok()) return status;
  Set(visible_bits_, view.column);
  views_[member] = view;
  return absl::OkStatus();
}

void Lives::Drop(Member member) {
  if (!has(member)) return;
  View& view = views_[member];
  KillColumn(view.column);
  if (view.in_snapshot) KillColumn(view.snapshot);
  SetDegraded(view, false);
  view = View();
}

Lives::Begun Lives::Begin(Member member, std::uint64_t first, std::size_t count) {
  CHECK(has(member));
  View& view = views_[member];
  Begun begun;
  if (first > view.next) {
    begun.applied = Applied::kGap;
    SetDegraded(view, true);
    if (view.in_snapshot) {
      view.in_snapshot = false;
      KillColumn(view.snapshot);
    }
    view.next = first;
  }
  const std::uint64_t seen = view.next - first;
  if (seen >= count) {
    if (begun.applied != Applied::kGap) begun.applied = Applied::kSeen;
    begun.skip = count;
    return begun;
  }
  begun.skip = static_cast<std::size_t>(seen);
  view.next = first + count;
  return begun;
}

void Lives::SetDegraded(View& view, bool degraded) {
  if (degraded && !view.degraded) ++degraded_;
  if (!degraded && view.degraded) --degraded_;
  view.degraded = degraded;
}

void Lives::BeginSnapshot(Member member) {
  View& view = views_[member];
  if (view.in_snapshot) KillColumn(view.snapshot);
  // Without a column it stays as it is, degraded, and a later snapshot helps.
  view.in_snapshot = NewColumn(member, view.snapshot).ok();
  if (!view.in_snapshot) SetDegraded(view, true);
}

void Lives::EndSnapshot(Member member) {
  View& view = views_[member];
  if (!view.in_snapshot) return;
  KillColumn(view.column);
  view.column = view.snapshot;
  Set(visible_bits_, view.column);
  view.in_snapshot = false;
  SetDegraded(view, false);
}

void Lives::Clear(Member member) {
  BeginSnapshot(member);
  EndSnapshot(member);
}

void Lives::Swept() {
  part_ = (part_ + 1) % parts_;
  std::erase_if(dead_columns_, [&](DeadColumn& dead) {
    if (--dead.parts_left > 0) return false;
    CHECK_EQ(column_held_[dead.column], 0u);
    Unset(dead_bits_, dead.column);
    free_columns_.push_back(dead.column);
    return true;
  });
}

}  // namespace penstock::coordinator
