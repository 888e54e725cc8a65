// SPDX-License-Identifier: Apache-2.0
#include "device/staged_copies.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check_ok.h"
#include "base/status.h"

namespace penstock {

absl::StatusOr<std::unique_ptr<StagedCopies>> StagedCopies::Make(Device& device,
                                                                 std::size_t piece_bytes) {
  std::unique_ptr<StagedCopies> copies(new StagedCopies);
  for (Stage& stage : copies->stages_) {
    ASSIGN_OR_RETURN(stage.memory, device.AllocateHost(piece_bytes));
    stage.stream = device.NewStream();
  }
  copies->thread_ = std::jthread([c = copies.get()] { c->Loop(); });
  return copies;
}

StagedCopies::~StagedCopies() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::uint64_t StagedCopies::Post(Way way, std::vector<Run> runs, std::shared_ptr<const Event> after,
                                 Done done) {
  return Add({way, std::move(runs), std::move(after), nullptr, std::move(done)});
}

std::uint64_t StagedCopies::Post(std::vector<Run> runs, Work work, Done done) {
  return Add({Way::kToDevice, std::move(runs), nullptr, std::move(work), std::move(done)});
}

std::uint64_t StagedCopies::Add(Batch batch) {
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(batch));
    number = ++posted_;
  }
  changed_.notify_all();
  return number;
}

bool StagedCopies::Copied(std::uint64_t batch) {
  const std::lock_guard lock(mutex_);
  CHECK_LE(batch, posted_);
  return told_ >= batch;
}

void StagedCopies::Wait(std::uint64_t batch) {
  std::unique_lock lock(mutex_);
  CHECK_LE(batch, posted_);
  changed_.wait(lock, [&] { return told_ >= batch || stop_; });
  CHECK_GE(told_, batch);  // Or it would never be.
}

void StagedCopies::Loop() {
  while (true) {
    Batch batch;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
      batch = std::move(waiting_.front());
      waiting_.pop_front();
    }
    Copy(batch);
    if (batch.done != nullptr) batch.done();
    batch = {};  // What `done` holds goes before Wait returns.
    {
      const std::lock_guard lock(mutex_);
      ++told_;
    }
    changed_.notify_all();
  }
}

void StagedCopies::Copy(const Batch& batch) {
  if (batch.after != nullptr) {
    for (const Stage& stage : stages_) stage.stream->WaitFor(*batch.after);
  }
  for (const Run& run : batch.runs) Add(batch, run);
  Finish(stages_[1 - now_]);
  Finish(stages_[now_]);
  if (batch.work == nullptr) return;
  Stream& stream = *stages_[now_].stream;
  batch.work(stream);
  CHECK_OK(stream.Synchronize());
}

// While one stage's copies run, the other one is filled.
void StagedCopies::Add(const Batch& batch, const Run& run) {
  for (std::size_t done = 0; done < run.bytes;) {
    Stage* stage = &stages_[now_];
    if (stage->used_bytes == stage->memory->size_bytes()) {
      now_ = 1 - now_;
      stage = &stages_[now_];
      Finish(*stage);
    }
    const std::size_t bytes =
        std::min(run.bytes - done, stage->memory->size_bytes() - stage->used_bytes);
    std::byte* const place = stage->memory->data() + stage->used_bytes;
    stage->used_bytes += bytes;
    if (batch.way == Way::kToDevice) {
      std::memcpy(place, run.from + done, bytes);
      stage->stream->Copy(run.to + done, place, bytes);
    } else {
      stage->stream->Copy(place, run.from + done, bytes);
      stage->landing.push_back({run.to + done, place, bytes});
    }
    done += bytes;
  }
}

void StagedCopies::Finish(Stage& stage) {
  if (stage.used_bytes == 0) return;
  CHECK_OK(stage.stream->Synchronize());
  for (const Run& run : stage.landing) std::memcpy(run.to, run.from, run.bytes);
  stage.landing.clear();
  stage.used_bytes = 0;
}

}  // namespace penstock
