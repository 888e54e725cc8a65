// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_out.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {

void NcclOut::DropSegment(SegmentId segment) {
  bool packs = false;
  for (Serving& read : serving_) {
    if (read.request.segment() != segment) continue;
    read.source = nullptr;
    if (read.status.ok()) read.status = absl::NotFoundError("the segment was withdrawn");
    packs = true;
  }
  // Of a read whose last slot is being packed nothing is left in the queue.
  if (packs || copies_.under_way() > 0) copies_.WaitForAll();
  orphans_ = 0;
  for (Packed& packed : offers_) {
    if (packed.state == Packed::State::kPacking) OfferPacked(packed, {});
  }
}

void NcclOut::Attach(std::shared_ptr<NcclRing> ring) {
  ring_ = std::move(ring);
  for (std::size_t i = 0; i < ring_->slots(); ++i) free_.push_back(i);
  next_number_ = 0;
}

void NcclOut::Detach() {
  for (; !serving_.empty(); serving_.Pop()) {
    const absl::Status& status = serving_.front().status;
    wire_.SendEnd(serving_.front().id,
                  status.ok() ? absl::CancelledError("the communicator is over") : status);
  }
  orphans_ = copies_.under_way();
  offers_.clear();
  free_.clear();
  ring_.reset();
}

void NcclOut::OfferPacked(Packed& packed, Duration took) {
  packed.state = Packed::State::kOffered;
  wire_.SendNccl({.type = NcclFrame::Type::kPacked,
                  .number = packed.number,
                  .read = packed.read,
                  .bytes = static_cast<std::uint32_t>(packed.bytes),
                  .pack_ns = static_cast<std::uint32_t>(
                      std::min<std::int64_t>(took / std::chrono::nanoseconds(1), 0xffffffff))});
}

absl::Status NcclOut::Advance() {
  while (copies_.under_way() > 0) {
    ASSIGN_OR_RETURN(const std::optional<Duration> ended, copies_.TakeFirst());
    if (!ended.has_value()) break;
    if (orphans_ > 0) {
      --orphans_;
    } else {
      OfferPacked(*First(Packed::State::kPacking), *ended);
    }
  }
  while (!serving_.empty()) {
    if (!serving_.front().status.ok()) {
      wire_.SendEnd(serving_.front().id, serving_.front().status);
      serving_.Pop();
      continue;
    }
    if (free_.empty()) break;  // Or there is no communicator.
    RETURN_IF_ERROR(Pack());
  }
  return absl::OkStatus();
}

absl::Status NcclOut::Pack() {
  Serving& read = serving_.front();
  const std::size_t index = free_.back();
  const NcclRing::Slot slot = ring_->out(index);
  const SlotCut cut = CutSlot(read.cursor, ring_->slot_bytes(), read.source, slot);
  RETURN_IF_ERROR(copies_.Begin(ring_, slot, cut.parts.size(), false));
  free_.pop_back();
  offers_.push_back({.state = Packed::State::kPacking,
                     .slot = index,
                     .number = next_number_++,
                     .read = read.id,
                     .bytes = cut.bytes});
  read.left -= cut.bytes;
  if (read.left == 0) serving_.Pop();
  return absl::OkStatus();
}

NcclOut::Packed* NcclOut::First(Packed::State state) {
  const auto found = std::ranges::find(offers_, state, &Packed::state);
  return found == offers_.end() ? nullptr : &*found;
}

absl::StatusOr<NcclOut::Packed*> NcclOut::Answered(std::uint64_t number) {
  Packed* const packed = First(Packed::State::kOffered);
  if (packed != nullptr && packed->number == number) return packed;
  return absl::InvalidArgumentError(
      absl::StrCat("the peer answers slot ", number, ", but ",
                   packed == nullptr ? "none" : absl::StrCat(packed->number), " is its turn"));
}

absl::StatusOr<NcclOut::Offer> NcclOut::OnReady(std::uint64_t number) {
  ASSIGN_OR_RETURN(Packed* const packed, Answered(number));
  packed->state = Packed::State::kPosted;
  return Offer{ring_->out(packed->slot).data, packed->bytes};
}

absl::Status NcclOut::OnSkip(std::uint64_t number) {
  ASSIGN_OR_RETURN(Packed* const packed, Answered(number));
  Free(*packed);
  return absl::OkStatus();
}

void NcclOut::OnMoved() {
  Packed* const packed = First(Packed::State::kPosted);
  CHECK(packed != nullptr);
  Free(*packed);
}

void NcclOut::Free(Packed& packed) {
  packed.state = Packed::State::kDone;
  free_.push_back(packed.slot);
  while (!offers_.empty() && offers_.front().state == Packed::State::kDone) offers_.pop_front();
}

}  // namespace penstock::transfer
