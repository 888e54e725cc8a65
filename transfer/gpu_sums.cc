// SPDX-License-Identifier: Apache-2.0
#include "transfer/gpu_sums.h"

#include <limits>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "transfer/crc_parts.h"

namespace penstock::transfer {
namespace {

// One is being computed, one is filled.
constexpr std::size_t kTables = 2;
// As the links of kind nccl ask, which takes some 10 us.
constexpr Duration kPoll = std::chrono::microseconds(20);
constexpr Duration kEarlyPoll = std::chrono::microseconds(200);  // Of bytes that are not there yet.

}  // namespace

absl::StatusOr<std::unique_ptr<GpuSums>> GpuSums::Make(Loop& loop, CudaDevice& device,
                                                       CopyUnitsFn copy_units) {
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceMemory> tables,
                   device.AllocateHost(kTables * sizeof(CopyTables)));
  return std::unique_ptr<GpuSums>(new GpuSums(loop, device, copy_units, std::move(tables)));
}

GpuSums::GpuSums(Loop& loop, CudaDevice& device, CopyUnitsFn copy_units,
                 std::unique_ptr<DeviceMemory> tables)
    : loop_(loop), tables_(std::move(tables)), copies_(device, copy_units) {
  for (std::size_t i = 0; i < kTables; ++i) {
    free_.push_back(reinterpret_cast<CopyTables*>(tables_->data()) + i);
  }
}

GpuSums::~GpuSums() {
  if (poll_) loop_.CancelTimer(*poll_);
}

void GpuSums::Compute(const std::byte* base, std::span<const std::uint64_t> offsets,
                      std::span<const ByteRun> runs, std::shared_ptr<const Event> written,
                      Done done) {
  auto request = std::make_unique<Request>();
  request->base = base;
  request->runs.assign(runs.begin(), runs.end());
  for (const std::uint64_t offset : offsets) {
    request->units.push_back({.from = offset, .to = nullptr, .runs = request->runs});
  }
  request->cursor = UnitCursor(request->units);
  request->written = std::move(written);
  request->crcs.assign(offsets.size(), 0);
  request->done = std::move(done);
  requests_.push_back(std::move(request));
  Work();
}

void GpuSums::Work() {
  absl::Status status = Take();
  if (status.ok()) status = Begin();
  if (!status.ok()) Fail(status);
  if (requests_.empty() || poll_) return;
  const std::shared_ptr<const Event>& written = requests_.front()->written;
  const bool early = written != nullptr && !written->Done();
  poll_ = loop_.At(loop_.Now() + (early ? kEarlyPoll : kPoll), [this] {
    poll_.reset();
    TellEnds();
  });
}

absl::Status GpuSums::Begin() {
  while (begun_ < requests_.size() && !free_.empty()) {
    Request& request = *requests_[begun_];
    if (request.cursor.done()) {
      ++begun_;
      continue;
    }
    if (request.written != nullptr && !request.waits) {
      RETURN_IF_ERROR(copies_.WaitFor(*request.written));
      request.waits = true;
    }
    Pass pass = {.request = &request, .cut = {}, .tables = free_.back()};
    const NcclRing::Slot slot = {.data = nullptr, .tables = pass.tables};
    pass.cut = CutSlot(request.cursor, std::numeric_limits<std::size_t>::max(), request.base, slot);
    RETURN_IF_ERROR(copies_.Begin(nullptr, slot, pass.cut.parts.size(), true));
    free_.pop_back();
    ++request.passes;
    passes_.push_back(std::move(pass));
  }
  return absl::OkStatus();
}

absl::Status GpuSums::Take() {
  while (copies_.under_way() > 0) {
    ASSIGN_OR_RETURN(const std::optional<Duration> ended, copies_.TakeFirst());
    if (!ended.has_value()) break;
    const Pass pass = std::move(passes_.front());
    passes_.pop_front();
    const std::uint32_t* crc = pass.tables->crcs;
    for (const SlotCut::Part& part : pass.cut.parts) {
      std::uint32_t& whole = pass.request->crcs[part.unit];
      whole = JoinCrc32c(whole, *crc++, part.bytes);
    }
    free_.push_back(pass.tables);
    --pass.request->passes;
  }
  return absl::OkStatus();
}

// Those at the front that are complete. A callback may ask for more, or destroy this.
void GpuSums::TellEnds() {
  const Life::Watch watch = life_.watch();
  Work();
  while (begun_ > 0 && requests_.front()->passes == 0) {
    const std::unique_ptr<Request> ended = std::move(requests_.front());
    requests_.pop_front();
    --begun_;
    ended->done(std::move(ended->crcs));
    if (watch.over()) return;
  }
}

// What was asked for ends so, and nothing of it is on the GPU any more.
void GpuSums::Fail(const absl::Status& why) {
  copies_.WaitForAll();
  passes_.clear();
  begun_ = 0;
  free_.clear();
  for (std::size_t i = 0; i < kTables; ++i) {
    free_.push_back(reinterpret_cast<CopyTables*>(tables_->data()) + i);
  }
  for (std::unique_ptr<Request>& request : std::exchange(requests_, {})) {
    loop_.Post(life_.Guard([done = std::move(request->done), why] { done(why); }));
  }
}

}  // namespace penstock::transfer
