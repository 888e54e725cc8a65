// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_in.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "transfer/crc_parts.h"
#include "transfer/tcp_frames.h"

namespace penstock::transfer {

// ---- Reads.

void NcclIn::Add(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) {
  const std::uint64_t bytes = TotalBytes(units);
  std::vector<std::uint32_t> crcs(units.size(), 0);
  if (bytes == 0) {
    ended_.push_back({.id = id, .status = {}, .crcs = std::move(crcs)});
    return;
  }
  absl::StatusOr<std::vector<std::byte>> request = ReadRequest::EncodeOne(segment, units);
  if (!request.ok()) return AddFailed(id, request.status());
  waiting_.push_back(id);
  reads_.emplace(id, Reading{.cursor = UnitCursor(units),
                             .crcs = std::move(crcs),
                             .checksums = checksums,
                             .unoffered = bytes,
                             .request = *std::move(request)});
}

void NcclIn::AddFailed(ReadId id, absl::Status status) {
  ended_.push_back({.id = id, .status = std::move(status), .crcs = {}});
}

std::optional<NcclIn::Question> NcclIn::NextQuestion() {
  if (waiting_.empty()) return std::nullopt;
  Reading& read = reads_.at(waiting_.front());
  if (asked_ >= kReadsMax || read.request.size() > kRequestsBytesMax - asked_bytes_) {
    return std::nullopt;
  }
  ++asked_;
  read.request_bytes = read.request.size();
  asked_bytes_ += read.request_bytes;
  Question question{.id = waiting_.front(), .request = std::exchange(read.request, {})};
  waiting_.pop_front();
  return question;
}

bool NcclIn::Cancel(ReadId id) {
  for (Ended& ended : ended_) {  // One of no bytes, perhaps.
    if (ended.id == id && ended.status.ok()) ended.status = absl::CancelledError("read cancelled");
  }
  const auto found = reads_.find(id);
  if (found == reads_.end() || found->second.over) return false;
  if (!found->second.request.empty()) {
    AddFailed(id, absl::CancelledError("read cancelled"));
    std::erase(waiting_, id);
    reads_.erase(found);
    return false;
  }
  const bool tell = !found->second.peer_done;
  End(found, absl::CancelledError("read cancelled"));
  return tell;
}

NcclIn::Reads::iterator NcclIn::Asked(ReadId id) {
  const auto found = reads_.find(id);
  const bool asked =
      found != reads_.end() && found->second.request.empty() && !found->second.peer_done;
  return asked ? found : reads_.end();
}

absl::Status NcclIn::OnEnd(ReadId id, std::span<const std::byte> payload) {
  const auto read = Asked(id);
  if (read == reads_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("read ", static_cast<std::uint64_t>(id), " ended, but was not under way"));
  }
  const absl::Status status = DecodeEnd(payload);
  if (absl::IsInternal(status)) return absl::InvalidArgumentError(status.message());
  PeerDone(read->second);
  End(read, status);
  return absl::OkStatus();
}

void NcclIn::PeerDone(Reading& read) {
  read.peer_done = true;
  read.unoffered = 0;
  --asked_;
  asked_bytes_ -= read.request_bytes;
}

void NcclIn::End(Reads::iterator read, const absl::Status& status) {
  if (!read->second.over) {
    read->second.over = true;
    read->second.end = status;
  }
  Settle(read);
}

// Tells what can be told, and forgets what nobody speaks of any more.
void NcclIn::Settle(Reads::iterator it) {
  Reading& read = it->second;
  if (!read.over && read.peer_done && read.slots == 0) {
    read.over = true;
    ended_.push_back(
        {.id = it->first, .status = {}, .crcs = std::move(read.crcs), .parts = read.parts});
  }
  if (read.end && read.copies == 0) {
    AddFailed(it->first, *read.end);
    read.end.reset();
  }
  if (read.over && !read.end && read.peer_done && read.slots == 0) reads_.erase(it);
}

// ---- Slots.

void NcclIn::Attach(std::shared_ptr<NcclRing> ring) {
  ring_ = std::move(ring);
  for (std::size_t i = 0; i < ring_->slots(); ++i) free_.push_back(i);
  next_number_ = 0;
}

std::vector<ReadId> NcclIn::Detach(const absl::Status& status) {
  ring_.reset();
  free_.clear();
  // Where the GPU failed nothing is under way any more.
  const bool unpacking = copies_.under_way() > 0;
  for (Slot& slot : slots_) {
    slot.orphan = true;
    if (slot.state == Slot::State::kUnpacking && unpacking) continue;
    Reading& read = reads_.at(slot.read);
    if (slot.state == Slot::State::kUnpacking) --read.copies;
    --read.slots;
    slot.state = Slot::State::kGone;
  }
  std::erase_if(slots_, [](const Slot& slot) { return slot.state == Slot::State::kGone; });
  std::vector<ReadId> tell;
  for (auto it = reads_.begin(); it != reads_.end();) {
    const auto read = it++;
    if (!read->second.request.empty()) continue;  // It goes over the next communicator.
    if (!read->second.over && !read->second.peer_done) tell.push_back(read->first);
    End(read, status);
  }
  return tell;
}

absl::Status NcclIn::OnPacked(const NcclFrame& packed) {
  const auto it = Asked(ReadId{packed.read});
  if (it == reads_.end() || packed.bytes == 0 || packed.bytes > it->second.unoffered) {
    return absl::InvalidArgumentError(absl::StrCat(packed.bytes, " bytes for read ", packed.read,
                                                   ", which did not ask for them"));
  }
  Reading& read = it->second;
  if (ring_ == nullptr && !read.over) {
    return absl::InvalidArgumentError(
        absl::StrCat("bytes for read ", packed.read, ", but there is no communicator"));
  }
  if (ring_ != nullptr) {
    const auto offered = std::ranges::count(slots_, Slot::State::kOffered, &Slot::state);
    if (packed.number != next_number_ || packed.bytes > ring_->slot_bytes() ||
        static_cast<std::size_t>(offered) >= ring_->slots()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the peer offers ", packed.bytes, " bytes as slot ", packed.number,
                       " beside ", offered, " others; a slot has ", ring_->slot_bytes(),
                       ", there are ", ring_->slots(), ", and the next is ", next_number_));
    }
    ++next_number_;
    ++read.slots;
    slots_.push_back({.state = Slot::State::kOffered,
                      .number = packed.number,
                      .read = it->first,
                      .bytes = packed.bytes,
                      .offered = loop_.Now()});
    read.parts.pack.Add(loop_.Now(), std::chrono::nanoseconds(packed.pack_ns));
  }
  read.unoffered -= packed.bytes;
  if (read.unoffered == 0) {
    PeerDone(read);
    Settle(it);
  }
  return absl::OkStatus();
}

std::optional<NcclIn::Reserved> NcclIn::Answer() {
  while (Slot* const slot = First(Slot::State::kOffered)) {
    if (reads_.at(slot->read).over) {
      wire_.SendNccl({.type = NcclFrame::Type::kSkip, .number = slot->number});
      Free(*slot);
      continue;
    }
    if (free_.empty()) break;
    slot->index = free_.back();
    free_.pop_back();
    slot->memory = ring_->in(slot->index);
    slot->state = Slot::State::kAnswered;
    return Reserved{slot->number, slot->memory.data, slot->bytes};
  }
  return std::nullopt;
}

absl::StatusOr<NcclIn::Reserved> NcclIn::Post(std::uint64_t number) {
  Slot* const slot = First(Slot::State::kAnswered);
  if (slot == nullptr || slot->number != number) {
    return absl::InvalidArgumentError(
        absl::StrCat("the peer posts slot ", number, ", but ",
                     slot == nullptr ? "none" : absl::StrCat(slot->number), " is its turn"));
  }
  slot->state = Slot::State::kPosted;
  const MonoTime now = loop_.Now();
  reads_.at(slot->read).parts.ready.Add(now, now - slot->offered);
  return Reserved{number, slot->memory.data, slot->bytes};
}

absl::Status NcclIn::OnMoved(Duration took) {
  Slot* const slot = First(Slot::State::kPosted);
  CHECK(slot != nullptr);
  Reading& read = reads_.at(slot->read);
  if (read.over) {
    Free(*slot);
    return absl::OkStatus();
  }
  read.parts.move.Add(loop_.Now(), took);
  slot->cut = CutSlot(read.cursor, slot->bytes, nullptr, slot->memory);
  if (slot->cut.bytes != slot->bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the peer put ", slot->bytes, " bytes into a slot whose runs fit for ", slot->cut.bytes));
  }
  slot->state = Slot::State::kUnpacking;
  ++read.copies;
  const absl::Status status =
      copies_.Begin(ring_, slot->memory, slot->cut.parts.size(), read.checksums);
  if (!status.ok()) copies_.WaitForAll();
  return status;
}

absl::Status NcclIn::Advance() {
  while (copies_.under_way() > 0) {
    const absl::StatusOr<std::optional<Duration>> ended = copies_.TakeFirst();
    if (!ended.ok()) {
      copies_.WaitForAll();
      return ended.status();
    }
    if (!ended->has_value()) break;
    Slot& slot = *First(Slot::State::kUnpacking);
    Reading& read = reads_.at(slot.read);
    read.parts.land.Add(loop_.Now(), **ended);
    --read.copies;
    const std::uint32_t* crc = slot.memory.tables->crcs;
    for (const SlotCut::Part& part : slot.cut.parts) {
      if (!read.over && read.checksums) {
        read.crcs[part.unit] = JoinCrc32c(read.crcs[part.unit], *crc++, part.bytes);
      }
    }
    Free(slot);
  }
  return absl::OkStatus();
}

NcclIn::Slot* NcclIn::First(Slot::State state) {
  const auto found =
      std::ranges::find_if(slots_, [&](const Slot& slot) { return slot.state == state; });
  return found == slots_.end() ? nullptr : &*found;
}

// The slot's read may be forgotten.
void NcclIn::Free(Slot& slot) {
  const auto read = reads_.find(slot.read);
  if (slot.state != Slot::State::kOffered && !slot.orphan) free_.push_back(slot.index);
  slot.state = Slot::State::kGone;
  while (!slots_.empty() && slots_.front().state == Slot::State::kGone) slots_.pop_front();
  --read->second.slots;
  Settle(read);
}

// ---- Ends.

bool NcclIn::wants() const {
  return std::ranges::any_of(
      reads_, [](const auto& entry) { return entry.second.request.empty() && !entry.second.over; });
}

bool NcclIn::TellEnds() {
  const Life::Watch life = life_.watch();
  // Those that a callback adds wait for the next turn.
  for (std::size_t left = ended_.size(); left > 0 && !ended_.empty(); --left) {
    const Ended ended = std::move(ended_.front());
    ended_.pop_front();
    parts_ = ended.parts;
    done_(ended.id, ended.status,
          ended.status.ok() ? std::span<const std::uint32_t>(ended.crcs)
                            : std::span<const std::uint32_t>());
    if (life.over()) return false;
  }
  return true;
}

bool NcclIn::FailAll(const absl::Status& status) {
  copies_.WaitForAll();
  (void)Detach(status);
  waiting_.clear();
  asked_ = asked_bytes_ = 0;
  for (const auto& [id, read] : std::exchange(reads_, {})) {
    if (!read.over) AddFailed(id, status);
  }
  while (!ended_.empty()) {
    if (!TellEnds()) return false;
  }
  return true;
}

}  // namespace penstock::transfer
