// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_server.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/node/copy_frame.h"

namespace penstock::kvstore {

using transfer::Channel;

struct StoreServer::Told {
  LeaseId lease{};
  std::uint64_t bytes = 0;
  bool may_keep = false;
};

struct StoreServer::Find {
  // What became of a copy; in order, from `told` on.
  struct Ready {
    bool known = false;
    absl::Status status;
    FoundMessage message;
    LeaseId lease{};
    std::uint64_t bytes = 0;
  };
  std::uint64_t id = 0;
  std::vector<BlockKey> keys;
  MonoTime deadline;
  std::size_t asked = 0;     // Of the tiers.
  std::size_t told = 0;      // To the peer.
  std::size_t released = 0;  // By the peer.
  bool over = false;         // Missing was told.
  std::deque<Ready> ready;   // From index `told` up to `asked`.
  std::deque<Told> leases;   // From index `released` up to `told`.
};

struct StoreServer::Peer {
  std::unique_ptr<Channel> channel;
  std::map<std::uint64_t, std::unique_ptr<Find>> finds;
  std::map<std::pair<std::uint64_t, std::uint32_t>, Told> kept;  // By find and index.
  std::size_t may_keep = 0;                                 // Of all that is told, kept ones too.
  std::map<std::uint64_t, std::unique_ptr<FramePut>> puts;  // Waiting or being read.
  transfer::Life life;
};

StoreServer::StoreServer(Loop& loop, TierSet& tiers, transfer::LinkTurns& turns,
                         transfer::SegmentId segment, Options options)
    : loop_(loop), tiers_(tiers), turns_(turns), segment_(segment), options_(std::move(options)) {
  if (!options_.secret.empty()) secret_ = Secret(options_.secret);
}

StoreServer::~StoreServer() {
  for (auto& [channel, peer] : peers_) {
    peer->channel.reset();  // No byte of a put is written from here on.
    EndPeer(*peer);
  }
}

std::size_t StoreServer::finds() const {
  std::size_t all = 0;
  for (const auto& [channel, peer] : peers_) all += peer->finds.size();
  return all;
}

std::size_t StoreServer::kept() const {
  std::size_t all = 0;
  for (const auto& [channel, peer] : peers_) all += peer->kept.size();
  return all;
}

std::size_t StoreServer::offers() const {
  std::size_t all = 0;
  for (const auto& [channel, peer] : peers_) all += peer->puts.size();
  return all;
}

void StoreServer::AddPeer(std::unique_ptr<Channel> channel) {
  auto made = std::make_unique<Peer>();
  Peer& peer = *made;
  peer.channel = std::move(channel);
  Channel* const key = peer.channel.get();
  peers_[key] = std::move(made);
  peer.channel->Start(
      {.on_message = [this, &peer](std::span<const std::byte> bytes) { OnMessage(peer, bytes); },
       .on_closed =
           [this, key](const absl::Status&) {
             const auto it = peers_.find(key);
             if (it == peers_.end()) return;
             const std::unique_ptr<Peer> gone = std::move(it->second);
             peers_.erase(it);
             EndPeer(*gone);
           }});
}

// Nothing of it is read or written any more.
void StoreServer::EndPeer(Peer& peer) {
  while (!peer.finds.empty()) EndFind(peer, peer.finds.begin()->first);
  for (const auto& [copy, told] : peer.kept) EndTold(peer, told);
  peer.kept.clear();
  for (auto& [id, put] : peer.puts) put->End(tiers_, absl::CancelledError("the peer is gone"));
  peer.puts.clear();
}

void StoreServer::Close(Peer& peer, const absl::Status& why) {
  ++stats_.hostile;
  LOG_WARNING("store peer closed",
              {{"peer", peer.channel->peer().name}, {"reason", why.ToString()}});
  const auto it = peers_.find(peer.channel.get());
  CHECK(it != peers_.end());
  const std::unique_ptr<Peer> gone = std::move(it->second);
  peers_.erase(it);
  gone->channel.reset();
  EndPeer(*gone);
}

// A peer that does not read is cut off; later, so that who sends need not see it.
void StoreServer::Send(Peer& peer, const StoreMessage& message) {
  const absl::Status status = peer.channel->Send(Encode(message));
  if (status.ok() || absl::IsUnavailable(status)) return;  // on_closed comes.
  loop_.Post(peer.life.Guard([this, &peer, status] { Close(peer, status); }));
}

void StoreServer::OnMessage(Peer& peer, std::span<const std::byte> bytes) {
  absl::StatusOr<StoreMessage> message = Decode(bytes);
  if (!message.ok()) return Close(peer, message.status());
  std::visit([&](auto& m) { On(peer, std::move(m)); }, *message);
}

void StoreServer::On(Peer& peer, const AskMessage& message) {
  WantMessage want = {.id = message.id};
  want.wanted.reserve(message.chains.size());
  for (const Chain& chain : message.chains) {
    want.wanted.push_back(tiers_.Wants({message.space, chain}));
  }
  Send(peer, want);
}

// ---- Puts.

void StoreServer::On(Peer& peer, OfferMessage message) {
  const std::uint64_t id = message.id;
  if (peer.puts.contains(id)) {
    return Close(peer, absl::InvalidArgumentError(absl::StrCat("offer ", id, " came twice")));
  }
  if (peer.puts.size() >= options_.offers_max) {
    ++stats_.puts_refused;
    return Send(
        peer,
        TakenMessage{id, absl::ResourceExhaustedError(absl::StrCat(
                             peer.puts.size(), " offers wait, at most ", options_.offers_max))});
  }
  absl::StatusOr<std::unique_ptr<FramePut>> made = FramePut::Make(std::move(message), secret_);
  if (!made.ok()) {
    ++stats_.hostile;
    ++stats_.puts_refused;
    LOG_WARNING("offer refused",
                {{"peer", peer.channel->peer().name}, {"reason", made.status().ToString()}});
    return Send(peer, TakenMessage{id, made.status()});
  }
  FramePut& put = **made;
  peer.puts[id] = *std::move(made);
  put.turn =
      turns_.Ask(peer.channel->link_in(), transfer::MoveClass::kWriteBack, put.bytes(),
                 loop_.Now() + options_.read_within, [this, &peer, id](const absl::Status& status) {
                   if (status.ok()) return Read(peer, id);
                   EndPut(peer, id, status);
                 });
  if (put.turn.begun()) Read(peer, id);
}

void StoreServer::Read(Peer& peer, std::uint64_t id) {
  FramePut& put = *peer.puts.at(id);
  if (const absl::Status status = put.Begin(tiers_); !status.ok()) {
    // Somebody else's of the same name is as good.
    Send(peer, TakenMessage{id, absl::IsAlreadyExists(status) ? absl::OkStatus() : status});
    if (!absl::IsAlreadyExists(status)) ++stats_.puts_refused;
    peer.puts.erase(id);
    return;
  }
  peer.channel->Read(put.Read(loop_.Now() + options_.read_within),
                     [this, &peer, id](const absl::Status& status) { EndPut(peer, id, status); });
}

void StoreServer::EndPut(Peer& peer, std::uint64_t id, const absl::Status& status) {
  const auto it = peer.puts.find(id);
  CHECK(it != peer.puts.end());
  const std::unique_ptr<FramePut> put = std::move(it->second);
  peer.puts.erase(it);
  if (status.ok()) {
    ++stats_.puts;
    stats_.bytes_put += put->bytes();
  } else {
    ++stats_.puts_refused;
  }
  put->End(tiers_, status);
  Send(peer, TakenMessage{id, status});
}

// ---- Finds.

void StoreServer::On(Peer& peer, FindMessage message) {
  if (peer.finds.contains(message.id)) {
    return Close(peer,
                 absl::InvalidArgumentError(absl::StrCat("find ", message.id, " came twice")));
  }
  if (peer.finds.size() >= options_.finds_max) {
    return Send(
        peer, MissingMessage{.id = message.id,
                             .status = absl::ResourceExhaustedError(absl::StrCat(
                                 peer.finds.size(), " finds run, at most ", options_.finds_max))});
  }
  ++stats_.finds;
  auto made = std::make_unique<Find>();
  Find& find = *made;
  find.id = message.id;
  find.keys.reserve(message.chains.size());
  for (const Chain& chain : message.chains) find.keys.push_back({message.space, chain});
  find.deadline = loop_.Now() + std::min<Duration>(std::chrono::milliseconds(message.within_ms),
                                                   options_.find_within_max);
  peer.finds[find.id] = std::move(made);
  tiers_.Asked(find.keys);
  if (message.backwards) std::ranges::reverse(find.keys);
  Look(peer, find);
}

void StoreServer::Look(Peer& peer, Find& find) {
  const std::uint64_t id = find.id;
  const transfer::Life::Watch watch = peer.life.watch();
  while (!find.over && find.asked < find.keys.size() &&
         find.asked < find.released + options_.find_ahead) {
    const std::size_t index = find.asked++;
    find.ready.emplace_back();
    tiers_.Get(find.keys[index], find.deadline,
               [this, watch, &peer, id, index](const absl::StatusOr<TierSet::Got>& got) {
                 if (watch.over()) return;
                 const auto it = peer.finds.find(id);
                 if (it != peer.finds.end()) OnGot(peer, *it->second, index, got);
               });
    if (watch.over() || !peer.finds.contains(id)) return;
  }
}

void StoreServer::OnGot(Peer& peer, Find& find, std::size_t index,
                        const absl::StatusOr<TierSet::Got>& got) {
  if (find.over) return;
  Find::Ready& ready = find.ready[index - find.told];
  ready.known = true;
  ready.status = got.status();
  if (got.ok()) {
    const HostTier::Found& found = got->found;
    const std::span<const std::byte> bytes = tiers_.host().Bytes(found.place, found.copy.bytes);
    const absl::StatusOr<std::size_t> header_bytes = FrameHeaderBytesOf(bytes);
    ready.status = header_bytes.status();
    if (header_bytes.ok() && *header_bytes <= std::min(kHeaderBytesMax, bytes.size())) {
      const absl::StatusOr<LeaseId> lease = tiers_.host().Lease(find.keys[index], loop_.Now());
      ready.status = lease.status();
      if (lease.ok()) ready.lease = *lease;
      ready.bytes = found.copy.bytes;
      ready.message = {
          .id = find.id,
          .index = static_cast<std::uint32_t>(index),
          .tier = got->from,
          .waited_us = static_cast<std::uint32_t>(
              std::chrono::duration_cast<std::chrono::microseconds>(got->waited).count()),
          .segment = segment_,
          .offset = found.place.offset + FramePayloadAt(*header_bytes),
          .generation_offset = found.place.generation_offset,
          .generation = found.place.generation,
          .lease_ms = static_cast<std::uint32_t>(
              std::chrono::ceil<std::chrono::milliseconds>(tiers_.host().lease()).count()),
          .header = {bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(*header_bytes)}};
    } else if (ready.status.ok()) {
      ready.status = absl::DataLossError("its header is longer than its frame");
    }
  }
  TellReady(peer, find);
}

// What is known, up to the first that is not.
void StoreServer::TellReady(Peer& peer, Find& find) {
  while (!find.over && !find.ready.empty() && find.ready.front().known) {
    Find::Ready ready = std::move(find.ready.front());
    find.ready.pop_front();
    if (ready.status.ok()) {
      ++find.told;
      ++stats_.copies_told;
      stats_.bytes_told += ready.bytes;
      ready.message.may_keep = MayKeep(peer, ready.bytes);
      find.leases.push_back({ready.lease, ready.bytes, ready.message.may_keep});
      Send(peer, ready.message);
      continue;
    }
    find.over = true;
    Send(peer, MissingMessage{.id = find.id,
                              .index = static_cast<std::uint32_t>(find.told),
                              .status = ready.status});
    for (const Find::Ready& behind : find.ready) {
      if (behind.known && behind.status.ok()) tiers_.host().EndLease(behind.lease, loop_.Now());
    }
    find.ready.clear();
  }
}

// Counted as kept from here to EndTold.
bool StoreServer::MayKeep(Peer& peer, std::uint64_t bytes) {
  const auto room = static_cast<double>(tiers_.host().stats().bytes_max);
  if (peer.may_keep >= options_.kept_max ||
      static_cast<double>(kept_bytes_ + bytes) > options_.kept_share * room) {
    return false;
  }
  ++peer.may_keep;
  kept_bytes_ += bytes;
  return true;
}

void StoreServer::EndTold(Peer& peer, const Told& told) {
  tiers_.host().EndLease(told.lease, loop_.Now());
  if (!told.may_keep) return;
  --peer.may_keep;
  kept_bytes_ -= told.bytes;
}

void StoreServer::On(Peer& peer, const ReleaseMessage& message) {
  const auto it = peer.finds.find(message.id);
  if (it == peer.finds.end()) return;  // It is over.
  Find& find = *it->second;
  if (message.count == UINT32_MAX) return EndFind(peer, message.id);
  if (message.count > find.told) {
    return Close(peer, absl::InvalidArgumentError(absl::StrCat("released ", message.count,
                                                               " copies, told were ", find.told)));
  }
  while (find.released < message.count) {
    EndTold(peer, find.leases.front());
    find.leases.pop_front();
    ++find.released;
  }
  Look(peer, find);
}

void StoreServer::On(Peer& peer, const KeepMessage& message) {
  const auto it = peer.finds.find(message.id);
  if (it == peer.finds.end()) return;  // It is over.
  Find& find = *it->second;
  if (message.count > find.told) {
    return Close(peer, absl::InvalidArgumentError(
                           absl::StrCat("kept ", message.count, " copies, told were ", find.told)));
  }
  while (find.released < message.count) {
    if (!find.leases.front().may_keep) {
      return Close(peer, absl::FailedPreconditionError(absl::StrCat(
                             "copy ", find.released, " was not to be kept: peers keep ",
                             kept_bytes_, " bytes, of ", tiers_.host().stats().bytes_max)));
    }
    peer.kept[{find.id, static_cast<std::uint32_t>(find.released)}] = find.leases.front();
    find.leases.pop_front();
    ++find.released;
  }
  Look(peer, find);
}

void StoreServer::On(Peer& peer, const DropMessage& message) {
  for (const std::uint32_t index : message.indices) {
    const auto it = peer.kept.find({message.id, index});
    if (it == peer.kept.end()) continue;  // Its lease had ended.
    EndTold(peer, it->second);
    peer.kept.erase(it);
  }
}

void StoreServer::On(Peer& peer, const RenewMessage& message) {
  // Of those being read, one that has ended is the reader's to notice, by its generation.
  for (const auto& [id, find] : peer.finds) {
    if (message.id != 0 && message.id != id) continue;
    for (const Told& told : find->leases) {
      tiers_.host().Renew(told.lease, loop_.Now()).IgnoreError();
    }
  }
  for (auto it = peer.kept.begin(); it != peer.kept.end();) {
    const auto& [id, index] = it->first;
    if ((message.id != 0 && message.id != id) ||
        tiers_.host().Renew(it->second.lease, loop_.Now()).ok()) {
      ++it;
      continue;
    }
    Send(peer, LostMessage{id, index});
    EndTold(peer, it->second);
    it = peer.kept.erase(it);
  }
}

void StoreServer::EndFind(Peer& peer, std::uint64_t id) {
  const auto it = peer.finds.find(id);
  CHECK(it != peer.finds.end());
  const std::unique_ptr<Find> find = std::move(it->second);
  peer.finds.erase(it);
  for (const Told& told : find->leases) EndTold(peer, told);
  for (const Find::Ready& ready : find->ready) {
    if (ready.known && ready.status.ok()) tiers_.host().EndLease(ready.lease, loop_.Now());
  }
}

}  // namespace penstock::kvstore
