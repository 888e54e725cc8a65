// SPDX-License-Identifier: Apache-2.0
#include "transfer/fault_link.h"

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"
#include "transfer/life.h"
#include "transfer/unit_cursor.h"

namespace penstock::transfer {
namespace {

class FaultLink final : public Link, private LinkEvents {
 public:
  FaultLink(Loop& loop, std::unique_ptr<Link> link, const FaultPlan& plan)
      : loop_(loop), plan_(plan), random_(plan.seed), link_(std::move(link)) {}

  void Start(LinkEvents& events) override {
    events_ = &events;
    link_->Start(*this);
  }
  Kind kind() const override { return kind_; }
  bool maps() const override { return maps_; }
  bool checks_alone() const override { return checks_alone_; }
  MappedMemory Mapped(SegmentId segment) const override {
    return link_ == nullptr ? MappedMemory() : link_->Mapped(segment);
  }
  std::string Describe() const override {
    return link_ == nullptr ? "cut off" : link_->Describe() + " with faults";
  }
  std::string host() const override { return link_ == nullptr ? "" : link_->host(); }

  absl::Status Send(std::span<const std::byte> message) override {
    if (link_ == nullptr) return absl::UnavailableError("the link is cut off");
    if (Draw(plan_.disconnect)) CutOff();
    if (link_ == nullptr || Draw(plan_.drop_message)) return absl::OkStatus();
    const int times = Draw(plan_.duplicate_message) ? 2 : 1;
    for (int i = 0; i < times; ++i) {
      std::vector<std::byte> bytes(message.begin(), message.end());
      if (Draw(plan_.corrupt_message)) Corrupt(bytes[random_() % bytes.size()]);
      if (Draw(plan_.delay_message)) {
        loop_.At(loop_.Now() + Delay(), life_.Guard([this, bytes = std::move(bytes)] {
          // The sender was told that it is sent: if it cannot be, it is lost.
          if (link_ != nullptr) (void)link_->Send(bytes);
        }));
      } else {
        RETURN_IF_ERROR(link_->Send(bytes));
      }
    }
    return absl::OkStatus();
  }

  void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) override {
    ReadOn({}, id, segment, units, checksums);
  }
  const ReadParts* parts() const override { return link_ == nullptr ? nullptr : link_->parts(); }
  void ReadOn(Lane lane, ReadId id, SegmentId segment, std::span<const Unit> units,
              bool checksums) override {
    auto& read = reads_[id];
    read.lane = lane;
    read.units = units;
    read.checksums = checksums;
    if (link_ == nullptr) return CutOff();
    if (Draw(plan_.disconnect)) return CutOff();
    read.corrupt = Draw(plan_.corrupt_read);
    if (!Draw(plan_.delay_read)) {
      read.started = true;
      return link_->ReadOn(lane, id, segment, units, checksums);
    }
    loop_.At(loop_.Now() + Delay(), life_.Guard([this, id, segment] {
      const auto found = reads_.find(id);
      if (found == reads_.end() || link_ == nullptr || found->second.cancelled) return;
      found->second.started = true;
      const Pending& late = found->second;
      link_->ReadOn(late.lane, id, segment, late.units, late.checksums);
    }));
  }

  void Cancel(ReadId id) override {
    const auto found = reads_.find(id);
    if (found == reads_.end() || link_ == nullptr || found->second.cancelled) return;
    if (found->second.started) return link_->Cancel(id);
    found->second.cancelled = true;
    loop_.Post(life_.Guard([this, id] {
      if (reads_.erase(id) > 0) events_->OnRead(id, absl::CancelledError("read cancelled"), {});
    }));
  }

 private:
  struct Pending {
    Lane lane;
    std::span<const Unit> units;
    bool checksums = true;
    bool corrupt = false;
    bool started = false;
    bool cancelled = false;  // Before it started.
  };

  bool Draw(double probability) {
    return std::uniform_real_distribution<double>(0, 1)(random_) < probability;
  }
  Duration Delay() {
    return Duration(
        std::uniform_int_distribution<std::int64_t>(0, plan_.delay_max.count())(random_));
  }
  void Corrupt(std::byte& byte) { byte ^= static_cast<std::byte>(1 + random_() % 255); }

  // Changes one byte of what landed, and gives the checksum that the reader would have computed.
  void CorruptRead(const Pending& read, std::vector<std::uint32_t>& crcs) {
    std::uint64_t left = TotalBytes(read.units);
    if (left == 0) return;
    std::uint64_t at = random_() % left;
    UnitCursor cursor(read.units);
    std::size_t unit = 0;
    for (; !cursor.done(); cursor.Advance(cursor.Next(SIZE_MAX).bytes)) {
      const UnitCursor::Piece piece = cursor.Next(SIZE_MAX);
      if (at < piece.bytes) {
        unit = piece.unit;
        // Nothing landed, and what was seen in the peer's memory was wrong; or it is a GPU's.
        if (piece.to == nullptr || kind_ == Kind::kNccl) {
          crcs[unit] = ~crcs[unit];
          return;
        }
        Corrupt(piece.to[at]);
        break;
      }
      at -= piece.bytes;
    }
    if (!read.checksums) return;
    crcs[unit] = 0;
    for (const ByteRun& run : read.units[unit].runs) {
      crcs[unit] = kernels::Crc32c(crcs[unit], read.units[unit].to + run.to, run.bytes);
    }
  }

  void OnMessage(std::span<const std::byte> message) override { events_->OnMessage(message); }
  void OnRead(ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) override {
    const auto node = reads_.extract(id);
    CHECK(!node.empty());
    std::vector<std::uint32_t> own(crcs.begin(), crcs.end());
    if (status.ok() && node.mapped().corrupt) CorruptRead(node.mapped(), own);
    events_->OnRead(id, status, own);
  }
  // Reads that were never started end here.
  void OnClosed(const absl::Status& status) override { Close(status); }

  void CutOff() {
    link_.reset();
    loop_.Post(life_.Guard([this] { Close(absl::UnavailableError("the link was cut off")); }));
  }
  void Close(const absl::Status& status) {
    const Life::Watch life = life_.watch();
    while (!reads_.empty()) {
      const ReadId id = reads_.begin()->first;
      reads_.erase(reads_.begin());
      events_->OnRead(id, absl::UnavailableError(status.message()), {});
      if (life.over()) return;
    }
    if (closed_) return;
    closed_ = true;
    events_->OnClosed(status);
  }

  Loop& loop_;
  const FaultPlan plan_;
  std::mt19937_64 random_;
  LinkEvents* events_ = nullptr;
  std::map<ReadId, Pending> reads_;
  bool closed_ = false;
  std::unique_ptr<Link> link_;  // Null once cut off.
  const Kind kind_ = link_->kind();
  const bool maps_ = link_->maps();
  const bool checks_alone_ = link_->checks_alone();
  Life life_;
};

}  // namespace

std::unique_ptr<Link> MakeFaultLink(Loop& loop, std::unique_ptr<Link> link, const FaultPlan& plan) {
  return std::make_unique<FaultLink>(loop, std::move(link), plan);
}

}  // namespace penstock::transfer
