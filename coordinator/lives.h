// SPDX-License-Identifier: Apache-2.0
// The lives of members that report what they hold as numbered events, for the indexes that believe
// them (prefix_index.h, store_index.h).
//
// Events are numbered 1, 2, ... in each life (epoch) of a member, and applied in order; what was
// seen already is skipped. A hole in the numbers means that holdings may be wrongly listed or
// missing: the member is degraded until a snapshot has passed whole. A snapshot is part of the same
// numbered stream: begin, a kStored for each thing held, in any order and with the changes of that
// time among them, end. Only then does it replace what was known before.
//
// What is held in one life, or seen in one snapshot, is booked under a column. Lookups believe
// visible ones alone, so a life ends, and a snapshot takes its place, at once; what is booked under
// a dead column is swept out of the index part by part, then the column is used again.
//
// Owned by its index; not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace penstock::coordinator {

// What became of a message of events.
enum class Applied : std::uint8_t {
  kApplied,
  kSeen,  // All of it was known already.
  kGap,   // Applied, after a hole: ask for a snapshot.
};

class Lives {
 public:
  using Member =
      std::uint32_t;  // A small number of the caller's: tables are as long as the largest.
  using Column = std::uint16_t;
  static constexpr std::size_t kColumnsMax = 0x7ff0;

  // The index is swept in so many parts.
  explicit Lives(std::size_t parts) : parts_(parts), visible_bits_(1), dead_bits_(1) {}

  // A member's new life: it holds nothing, and its next event has number 1. RESOURCE_EXHAUSTED with
  // both numbers when dropped lives take all columns: sweep, then try again.
  absl::Status Add(Member member);
  void Drop(Member member);  // Unknown: ignored.

  // Events `first` to first + count - 1 of a member that was added: those from `skip` on are to be
  // applied, in order.
  struct Begun {
    Applied applied = Applied::kApplied;
    std::size_t skip = 0;
  };
  Begun Begin(Member member, std::uint64_t first, std::size_t count);
  void BeginSnapshot(Member member);
  void EndSnapshot(Member member);
  void Clear(Member member);  // Holds nothing, for sure.

  bool has(Member member) const { return member < views_.size() && views_[member].added; }
  bool degraded(Member member) const { return views_[member].degraded; }
  std::size_t degraded() const { return degraded_; }  // How many are.
  std::size_t members() const { return views_.size(); }
  // Calls `see` with every column that a change of a member is booked under.
  template <typename See>
  void ForColumns(Member member, const See& see) {
    const View view = views_[member];
    see(view.column);
    if (view.in_snapshot) see(view.snapshot);
  }

  Member member(Column column) const { return column_members_[column]; }
  std::size_t& held(Column column) { return column_held_[column]; }  // How much is booked under it.
  std::size_t held_by(Member member) const {
    return has(member) ? column_held_[views_[member].column] : 0;
  }
  bool visible(Column column) const { return (visible_bits_[column / 64] >> (column % 64)) & 1; }
  bool dead(Column column) const { return (dead_bits_[column / 64] >> (column % 64)) & 1; }
  // As sets of columns, words() long: a power of two.
  const std::vector<std::uint64_t>& visible_bits() const { return visible_bits_; }
  const std::vector<std::uint64_t>& dead_bits() const { return dead_bits_; }
  std::size_t words() const { return visible_bits_.size(); }

  // The part to take what is dead out of; after Sweep, call Swept.
  bool swept() const { return dead_columns_.empty(); }
  std::size_t part() const { return part_; }
  void Swept();

 private:
  struct View {  // What is known of one member.
    bool added = false;
    bool degraded = false;
    bool in_snapshot = false;
    Column column = 0;
    Column snapshot = 0;
    std::uint64_t next = 1;
  };
  struct DeadColumn {
    Column column;
    std::size_t parts_left;
  };
  absl::Status NewColumn(Member member, Column& column);
  void KillColumn(Column column);
  void SetDegraded(View& view, bool degraded);

  const std::size_t parts_;
  std::size_t degraded_ = 0;
  std::vector<View> views_;             // By member.
  std::vector<Member> column_members_;  // By column, as the next.
  std::vector<std::size_t> column_held_;
  std::vector<Column> free_columns_;
  std::vector<DeadColumn> dead_columns_;
  std::vector<std::uint64_t> visible_bits_;
  std::vector<std::uint64_t> dead_bits_;
  std::size_t part_ = 0;
};

}  // namespace penstock::coordinator
