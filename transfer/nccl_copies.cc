// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_copies.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "base/time.h"

namespace penstock::transfer {
namespace {

// 64 of them fill a slot of 4 MiB: enough blocks to use a GPU's memory.
constexpr std::size_t kPartBytes = std::size_t{64} << 10;
constexpr Duration kKernelMax = std::chrono::seconds(30);

}  // namespace

SlotCut CutSlot(UnitCursor& cursor, std::size_t bytes_max, const std::byte* source,
                const NcclRing::Slot& slot) {
  SlotCut cut;
  std::uint32_t runs = 0;
  while (cut.bytes < bytes_max && runs < CopyTables::kRunsMax && !cursor.done()) {
    const UnitCursor::Piece piece = cursor.Next(std::min(bytes_max - cut.bytes, kPartBytes));
    const bool same = !cut.parts.empty() && cut.parts.back().unit == piece.unit &&
                      cut.parts.back().bytes + piece.bytes <= kPartBytes;
    if (!same) {
      slot.tables->units[cut.parts.size()] = {.first_run = runs, .runs = 0};
      cut.parts.push_back({.unit = piece.unit, .bytes = 0});
    }
    ++slot.tables->units[cut.parts.size() - 1].runs;
    cut.parts.back().bytes += piece.bytes;
    std::byte* const staged = slot.data == nullptr ? nullptr : slot.data + cut.bytes;
    slot.tables->runs[runs++] = {.from = source == nullptr ? staged : source + piece.from,
                                 .to = source == nullptr ? piece.to : staged,
                                 .bytes = static_cast<std::uint32_t>(piece.bytes)};
    cut.bytes += piece.bytes;
    cursor.Advance(piece.bytes);
  }
  return cut;
}

NcclCopies::~NcclCopies() { WaitForAll(); }

absl::Status NcclCopies::Failed(int error, const char* what) const {
  return absl::InternalError(
      absl::StrCat("cuda: ", what, ": ", CudaErrorText(device_.plugin(), error)));
}

absl::Status NcclCopies::Begin(std::shared_ptr<NcclRing> ring, const NcclRing::Slot& slot,
                               std::size_t units, bool checksums) {
  CudaStreamHandle const stream = stream_.handle();
  CudaStopwatch time(device_.plugin());
  if (const int error = time.Begin(stream); error != kCudaSuccess) {
    return Failed(error, "timing a copy");
  }
  CopyTables& tables = *slot.tables;
  const int copying = copy_units_(tables.units, static_cast<std::int32_t>(units), tables.runs,
                                  checksums ? tables.crcs : nullptr, stream);
  const int timing = time.End(stream);
  // Something may be under way, whatever the calls said.
  copies_.push_back({std::move(ring), std::move(time)});
  if (timing != kCudaSuccess) (void)stream_.Synchronize();  // No event tells its end.
  if (copying != kCudaSuccess) return Failed(copying, "copying a slot");
  return timing == kCudaSuccess ? absl::OkStatus() : Failed(timing, "timing a copy");
}

absl::StatusOr<std::optional<Duration>> NcclCopies::TakeFirst() {
  CHECK(!copies_.empty());
  Duration time{};
  const int error = copies_.front().time.Take(time);
  if (error == kCudaNotReady) return std::nullopt;
  copies_.pop_front();
  if (error != kCudaSuccess) return Failed(error, "copying a slot");
  return time;
}

void NcclCopies::WaitForAll() {
  const MonoTime end = SteadyClock().Now() + kKernelMax;
  while (!copies_.empty()) {
    if (const auto ended = TakeFirst(); !ended.ok() || ended->has_value()) continue;
    CHECK(SteadyClock().Now() < end);
    std::this_thread::yield();
  }
}

}  // namespace penstock::transfer
