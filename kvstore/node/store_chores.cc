// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_chores.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kBatch = 256;  // Copies listed at a time.
constexpr Duration kStep = milliseconds(1);
constexpr Duration kPauseMin = milliseconds(1);
constexpr Duration kPauseMax = milliseconds(50);
constexpr Duration kProgressEvery = milliseconds(200);
// On their way to the tier below at a time: fewer than a disk takes.
constexpr std::uint64_t kFlushCopies = 64;
constexpr std::uint64_t kFlushBytes = std::uint64_t{32} << 20;
constexpr std::size_t kDeletesMax = 64;

}  // namespace

struct StoreChores::Chore {
  Asked asked;
  Step step = nullptr;
  Sum sum;
  Loop::TimerId timer{};
  MonoTime began;  // This step.
  MonoTime told;   // Progress.
  std::optional<BlockKey> after;
  std::vector<TierSet::Listed> batch;
  std::size_t at = 0;        // In it.
  std::size_t awaiting = 0;  // Answers of tiers.
  bool stepping = false;
  bool last = false;  // Nothing is behind the batch.
  absl::Status status;
};

StoreChores::StoreChores(Loop& loop, TierSet& tiers) : loop_(loop), tiers_(tiers) {}
StoreChores::~StoreChores() {
  for (const auto& chore : running_) loop_.CancelTimer(chore->timer);
}

void StoreChores::Verify(Asked asked) { Begin(std::move(asked), &StoreChores::VerifyStep); }
void StoreChores::Flush(Asked asked) { Begin(std::move(asked), &StoreChores::FlushStep); }
void StoreChores::DeleteAll(Asked asked) { Begin(std::move(asked), &StoreChores::DeleteStep); }

void StoreChores::Begin(Asked asked, Step step) {
  if (running_.size() >= kChoresMax) {
    return loop_.Post(life_.Guard([done = std::move(asked.done)] {
      done(absl::ResourceExhaustedError(
               absl::StrCat(kChoresMax, " such commands run on this node; wait for one to end")),
           {});
    }));
  }
  auto chore = std::make_unique<Chore>();
  chore->asked = std::move(asked);
  chore->step = step;
  chore->sum.copies_max = tiers_.copies();
  chore->told = loop_.Now();
  Chore& made = *chore;
  running_.push_back(std::move(chore));
  made.timer = loop_.At(loop_.Now(), [this, &made] { Run(made); });
}

// A chore is there until End: its timer and its answers are awaited.
void StoreChores::Run(Chore& chore) {
  if (chore.awaiting == 0 && !chore.asked.wanted()) {
    return End(chore, absl::CancelledError("nobody waits for it any more"));
  }
  chore.began = loop_.Now();
  if (chore.began - chore.told >= kProgressEvery) {
    chore.told = chore.began;
    if (chore.asked.on_progress != nullptr) chore.asked.on_progress(chore.sum);
  }
  (this->*chore.step)(chore);
}

void StoreChores::Pause(Chore& chore) {
  const Duration pause = std::clamp(3 * (loop_.Now() - chore.began), kPauseMin, kPauseMax);
  chore.timer = loop_.At(loop_.Now() + pause, [this, &chore] { Run(chore); });
}

void StoreChores::End(Chore& chore, const absl::Status& status) {
  const auto it =
      std::ranges::find(running_, &chore, [](const auto& running) { return running.get(); });
  const std::unique_ptr<Chore> ended = std::move(*it);
  running_.erase(it);
  ended->asked.done(status, ended->sum);
}

const TierSet::Listed* StoreChores::Next(Chore& chore) {
  if (chore.at == chore.batch.size()) {
    if (chore.last) return nullptr;
    chore.batch = tiers_.ListFrom({}, chore.after, kBatch);
    chore.at = 0;
    chore.last = chore.batch.size() < kBatch;
    if (chore.batch.empty()) return nullptr;
    chore.after = chore.batch.back().copy.key;
  }
  return &chore.batch[chore.at++];
}

// One after the other.
void StoreChores::VerifyStep(Chore& chore) {
  chore.stepping = true;
  while (loop_.Now() - chore.began < kStep) {
    const TierSet::Listed* const listed = Next(chore);
    if (listed == nullptr) return End(chore, absl::OkStatus());
    ++chore.awaiting;
    tiers_.Verify(listed->copy.key, [this, watch = life_.watch(), &chore](
                                        const absl::Status& status, std::uint64_t bytes) {
      if (watch.over()) return;
      --chore.awaiting;
      ++chore.sum.copies;
      chore.sum.bytes += bytes;
      // What lies elsewhere, or went meanwhile, is not this node's to check.
      if (absl::IsDataLoss(status)) {
        ++chore.sum.damaged;
      } else if (!status.ok() && !absl::IsNotFound(status)) {
        ++chore.sum.unread;
      }
      if (!chore.stepping) Pause(chore);
    });
    if (chore.awaiting > 0) {
      chore.stepping = false;
      return;
    }
    // A virtual clock stands still meanwhile.
    if (chore.at == chore.batch.size()) break;
  }
  chore.stepping = false;
  Pause(chore);
}

void StoreChores::FlushStep(Chore& chore) {
  if (tiers_.leaving() == 0) {
    const HostTier::Stats host = tiers_.host().stats();
    const std::uint64_t each = host.bytes / std::max<std::uint64_t>(1, host.copies);
    const std::uint64_t bytes =
        tiers_.FlushHost(std::clamp<std::uint64_t>(each * kFlushCopies, 1, kFlushBytes));
    if (bytes == 0) return End(chore, absl::OkStatus());  // The rest is held, leased or pinned.
    chore.sum.bytes += bytes;
  }
  Pause(chore);
}

void StoreChores::DeleteStep(Chore& chore) {
  while (chore.awaiting < kDeletesMax) {
    const TierSet::Listed* const listed = Next(chore);
    if (listed == nullptr) break;
    ++chore.awaiting;
    ++chore.sum.copies;
    chore.sum.bytes += listed->copy.bytes;
    tiers_.Delete(listed->copy.key,
                  [this, watch = life_.watch(), &chore](const absl::Status& status) {
                    if (watch.over()) return;
                    --chore.awaiting;
                    if (status.ok()) ++chore.sum.deleted;
                    // Somebody else was faster: it is gone.
                    if (!absl::IsNotFound(status)) chore.status.Update(status);
                    if (chore.awaiting == 0) Pause(chore);
                  });
  }
  if (chore.awaiting == 0) End(chore, chore.status);
}

}  // namespace penstock::kvstore
