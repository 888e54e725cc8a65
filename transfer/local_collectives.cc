// SPDX-License-Identifier: Apache-2.0
// Ranks in one process: each says where its part lies, waits until all have said so, and copies the
// others' parts to itself. No second wait is needed: who comes to the next gather has read all of
// this one.
#include <condition_variable>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "transfer/collectives.h"

namespace penstock::transfer {
namespace {

// Where every rank has come to.
class Meeting {
 public:
  Meeting(std::int32_t ranks, Duration patience)
      : patience_(patience), count_(ranks), ranks_(static_cast<std::size_t>(ranks)) {}

  std::int32_t ranks() const { return count_; }

  // Says that the part of `rank` in its next gather lies at `part`, and waits for those of all the
  // others: [ranks], in `parts`.
  absl::Status Come(std::int32_t rank, const std::byte* part, std::size_t bytes,
                    std::vector<const std::byte*>* parts) {
    std::unique_lock lock(mutex_);
    RETURN_IF_ERROR(failed_);
    Rank& own = ranks_[static_cast<std::size_t>(rank)];
    const std::uint64_t gather = ++own.gathers;
    own.part[gather % 2] = part;
    own.bytes = bytes;
    if (FirstBehind(gather) < 0) changed_.notify_all();
    changed_.wait_for(lock, patience_, [&] { return !failed_.ok() || FirstBehind(gather) < 0; });
    if (failed_.ok()) Judge(rank, gather, bytes);
    RETURN_IF_ERROR(failed_);
    parts->clear();
    for (const Rank& r : ranks_) parts->push_back(r.part[gather % 2]);
    return absl::OkStatus();
  }

  void Fail(const absl::Status& why) {
    const std::lock_guard lock(mutex_);
    if (failed_.ok()) failed_ = why;
    changed_.notify_all();
  }

 private:
  struct Rank {
    std::uint64_t gathers = 0;  // That it has come to.
    // Of the last two: one rank may be at the next gather while another still looks at this one,
    // but no further.
    const std::byte* part[2] = {};
    std::size_t bytes = 0;  // Of the last one.
  };

  // With mutex_ held: the first rank that has not come to `gather`; -1: all have.
  std::int32_t FirstBehind(std::uint64_t gather) const {
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      if (ranks_[r].gathers < gather) return static_cast<std::int32_t>(r);
    }
    return -1;
  }

  // With mutex_ held, after the wait.
  void Judge(std::int32_t rank, std::uint64_t gather, std::size_t bytes) {
    if (const std::int32_t behind = FirstBehind(gather); behind >= 0) {
      failed_ = absl::DeadlineExceededError(
          absl::StrCat("rank ", behind, " of ", ranks(), " did not come to gather ", gather,
                       " within ", ToMillis(patience_), " ms of rank ", rank));
      changed_.notify_all();
    }
    for (const Rank& r : ranks_) {
      if (r.gathers == gather) CHECK_EQ(r.bytes, bytes);
    }
  }

  const Duration patience_;
  const std::int32_t count_;
  // Not Abseil's, into which the thread sanitizer cannot see. Guards all below.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Rank> ranks_;
  absl::Status failed_;
};

class LocalCollectives final : public Collectives {
 public:
  LocalCollectives(std::int32_t rank, std::shared_ptr<Meeting> meeting)
      : rank_(rank), meeting_(std::move(meeting)) {}

  std::int32_t rank() const override { return rank_; }
  std::int32_t ranks() const override { return meeting_->ranks(); }

  absl::Status AllGather(Stream& stream, std::byte* all, std::size_t bytes) override {
    const std::size_t own = static_cast<std::size_t>(rank_) * bytes;
    RETURN_IF_ERROR(Finish(stream));  // Also the copies that the last gather left there.
    RETURN_IF_ERROR(meeting_->Come(rank_, all + own, bytes, &parts_));
    for (std::size_t r = 0; r < parts_.size(); ++r) {
      if (r != static_cast<std::size_t>(rank_)) stream.Copy(all + r * bytes, parts_[r], bytes);
    }
    return absl::OkStatus();
  }

  absl::Status Finish(Stream& stream) override {
    const absl::Status done = stream.Synchronize();
    if (!done.ok()) {
      meeting_->Fail(absl::AbortedError(absl::StrCat("rank ", rank_, " failed: ", done.message())));
    }
    return done;
  }

  void Abort(const absl::Status& why) override {
    meeting_->Fail(absl::AbortedError(absl::StrCat("rank ", rank_, " gave up: ", why.message())));
  }

 private:
  const std::int32_t rank_;
  const std::shared_ptr<Meeting> meeting_;  // Of all ranks, whose threads end in any order.
  std::vector<const std::byte*> parts_;
};

}  // namespace

std::vector<std::unique_ptr<Collectives>> MakeLocalCollectives(std::int32_t ranks,
                                                               Duration patience) {
  CHECK_GE(ranks, 1);
  const auto meeting = std::make_shared<Meeting>(ranks, patience);
  std::vector<std::unique_ptr<Collectives>> all;
  for (std::int32_t r = 0; r < ranks; ++r) {
    all.push_back(std::make_unique<LocalCollectives>(r, meeting));
  }
  return all;
}

}  // namespace penstock::transfer
