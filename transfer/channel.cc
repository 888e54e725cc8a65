// SPDX-License-Identifier: Apache-2.0
#include "transfer/channel.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {

Channel::Channel(Loop& loop, Peer peer, std::unique_ptr<Link> link)
    : loop_(loop), peer_(std::move(peer)), link_(std::move(link)) {
  const std::string host = link_->host();
  if (host.empty()) return;
  link_in_ = "from " + host;
  link_out_ = "to " + host;
}

Channel::~Channel() {
  for (const auto& [id, read] : pending_) loop_.CancelTimer(read.timer);
}

void Channel::Start(Events events) {
  CHECK(!open_);
  events_ = std::make_shared<const Events>(std::move(events));
  open_ = true;
  link_->Start(*this);
}

absl::Status Channel::Send(std::span<const std::byte> message) {
  if (!open_) return absl::UnavailableError("the channel is closed");
  const absl::Status status = link_->Send(message);
  if (status.ok()) ++stats_.messages_sent;
  return status;
}

ReadId Channel::Read(ReadRequest request, ReadDone done) {
  CHECK(!request.verify || request.units.size() == request.crcs.size());
  CHECK(checks_alone() || std::ranges::all_of(request.units, [](const Unit& unit) {
          return unit.to != nullptr || unit.runs.empty();
        }));
  const ReadId id{next_read_++};
  if (!open_) {
    loop_.Post(life_.Guard([this, done = std::move(done)] {
      ++stats_.reads;
      ++stats_.reads_failed;
      done(absl::UnavailableError("the channel is closed"));
    }));
    return id;
  }
  Pending& read = pending_[id];
  read.units = std::move(request.units);
  read.crcs = std::move(request.crcs);
  read.parts = request.parts;
  read.verify = request.verify;
  read.done = std::move(done);
  read.timer = loop_.At(request.deadline, [this, id] {
    pending_.at(id).late = true;  // The read has not ended: its end cancels this timer.
    link_->Cancel(id);
  });
  link_->ReadOn(request.lane, id, request.segment, read.units, read.verify);
  return id;
}

void Channel::Cancel(ReadId id) {
  if (pending_.contains(id)) link_->Cancel(id);
}

void Channel::OnMessage(std::span<const std::byte> message) {
  ++stats_.messages_received;
  const auto events = events_;
  if (events->on_message) events->on_message(message);
}

absl::Status Channel::Compare(const Pending& read, std::span<const std::uint32_t> crcs) {
  CHECK_EQ(crcs.size(), read.units.size());
  absl::Status status;
  for (std::size_t i = 0; read.verify && i < crcs.size(); ++i) {
    if (crcs[i] == read.crcs[i]) continue;
    ++stats_.units_corrupt;
    if (!status.ok()) continue;
    status = absl::DataLossError(absl::StrFormat("unit %d of %d has checksum %08x, expected %08x",
                                                 i, crcs.size(), crcs[i], read.crcs[i]));
  }
  return status;
}

void Channel::OnRead(ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) {
  const auto found = pending_.find(id);
  CHECK(found != pending_.end());
  loop_.CancelTimer(found->second.timer);
  const auto node = pending_.extract(found);
  const Pending& read = node.mapped();
  absl::Status end = status;
  if (const ReadParts* parts = link_->parts(); parts != nullptr && read.parts != nullptr) {
    *read.parts = *parts;
  }
  if (status.ok()) {
    end = Compare(read, crcs);
  } else if (read.late && absl::IsCancelled(status)) {
    end = absl::DeadlineExceededError(
        absl::StrCat("the read of ", TotalBytes(read.units), " bytes passed its deadline"));
  }
  ++stats_.reads;
  if (end.ok()) {
    stats_.bytes_read += static_cast<std::int64_t>(TotalBytes(read.units));
  } else {
    ++stats_.reads_failed;
  }
  read.done(end);
}

void Channel::OnClosed(const absl::Status& status) {
  open_ = false;
  CHECK(pending_.empty());
  const auto events = events_;
  if (events->on_closed) events->on_closed(status);
}

}  // namespace penstock::transfer
