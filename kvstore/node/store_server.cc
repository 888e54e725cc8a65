// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_server.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/node/copy_frame.h"

namespace penstock::kvstore {

using transfer::ByteRun;
using transfer::Channel;
using transfer::Unit;

struct StoreServer::Put {
  OfferMessage offer;
  FrameHeader header;
  std::uint32_t bytes = 0;    // Of the frame.
  std::span<std::byte> to;    // Once there is room.
  std::vector<ByteRun> runs;  // One for each layer.
};

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
  std::size_t may_keep = 0;                            // Of all that is told, kept ones too.
  std::map<std::uint64_t, std::unique_ptr<Put>> puts;  // Waiting or being read.
  std::deque<std::uint64_t> waiting;                   // Of puts, in their order.
  std::size_t reading_bytes = 0;
  transfer::Life life;
};

StoreServer::StoreServer(Loop& loop, TierSet& tiers, transfer::SegmentId segment, Options options)
    : loop_(loop), tiers_(tiers), segment_(segment), options_(std::move(options)) {
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
  for (auto& [id, put] : peer.puts) {
    if (!put->to.empty()) tiers_.EndPut(put->offer.key, absl::CancelledError("the peer is gone"));
  }
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

absl::StatusOr<FrameHeader> StoreServer::CheckOffer(const OfferMessage& message) const {
  ASSIGN_OR_RETURN(FrameHeader header, ParseHeaderOfCopy(message.key, message.header, secret_));
  if (message.offset % kFramePageBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("a payload must be offered at a multiple of ",
                                                   kFramePageBytes, ", got ", message.offset));
  }
  RETURN_IF_ERROR(CheckRange("bytes of a frame", header.payload_bytes(), std::uint64_t{1},
                             std::uint64_t{1} << 30));
  return header;
}

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
  absl::StatusOr<FrameHeader> header = CheckOffer(message);
  if (!header.ok()) {
    ++stats_.hostile;
    ++stats_.puts_refused;
    LOG_WARNING("offer refused",
                {{"peer", peer.channel->peer().name}, {"reason", header.status().ToString()}});
    return Send(peer, TakenMessage{id, header.status()});
  }
  auto put = std::make_unique<Put>();
  put->bytes =
      static_cast<std::uint32_t>(FramePayloadAt(message.header.size()) + header->payload_bytes());
  put->header = *std::move(header);
  put->offer = std::move(message);
  peer.puts[id] = std::move(put);
  peer.waiting.push_back(id);
  StartReads(peer);
}

// Takes room, and describes the read.
absl::Status StoreServer::BeginPut(Put& put) {
  HostTier::Copy copy = {.key = put.offer.key,
                         .bytes = put.bytes,
                         .tenant = put.offer.tenant,
                         .tokens_before = put.offer.tokens_before,
                         .codec = static_cast<std::uint8_t>(put.header.codec)};
  if (put.offer.parent.has_value()) copy.parent = {put.offer.key.space, *put.offer.parent};
  ASSIGN_OR_RETURN(put.to, tiers_.BeginPut(copy));
  for (std::int32_t layer = 0; layer < put.header.shape.cache_layers; ++layer) {
    put.runs.push_back({.bytes = static_cast<std::uint32_t>(put.header.LayerBytes(layer))});
  }
  return absl::OkStatus();
}

void StoreServer::StartReads(Peer& peer) {
  while (!peer.waiting.empty() &&
         (peer.reading_bytes == 0 || peer.reading_bytes < options_.read_bytes_max)) {
    const std::uint64_t id = peer.waiting.front();
    peer.waiting.pop_front();
    Put& put = *peer.puts.at(id);
    if (const absl::Status status = BeginPut(put); !status.ok()) {
      // Somebody else's of the same name is as good.
      Send(peer, TakenMessage{id, absl::IsAlreadyExists(status) ? absl::OkStatus() : status});
      if (!absl::IsAlreadyExists(status)) ++stats_.puts_refused;
      peer.puts.erase(id);
      continue;
    }
    Channel::ReadRequest read = {.segment = put.offer.segment,
                                 .units = {},
                                 .crcs = put.header.layer_crcs,
                                 .deadline = loop_.Now() + options_.read_within};
    std::size_t at = 0;
    const std::size_t payload_at = FramePayloadAt(put.offer.header.size());
    for (const ByteRun& run : put.runs) {
      read.units.push_back({.from = put.offer.offset + at,
                            .to = put.to.data() + payload_at + at,
                            .runs = {&run, 1}});
      at += run.bytes;
    }
    peer.reading_bytes += put.bytes;
    peer.channel->Read(std::move(read),
                       [this, &peer, id](const absl::Status& status) { EndPut(peer, id, status); });
  }
}

void StoreServer::EndPut(Peer& peer, std::uint64_t id, const absl::Status& status) {
  const auto it = peer.puts.find(id);
  CHECK(it != peer.puts.end());
  const std::unique_ptr<Put> put = std::move(it->second);
  peer.puts.erase(it);
  peer.reading_bytes -= put->bytes;
  if (status.ok()) {
    const std::size_t payload_at = FramePayloadAt(put->offer.header.size());
    std::ranges::copy(put->offer.header, put->to.begin());
    std::ranges::fill(put->to.first(payload_at).subspan(put->offer.header.size()), std::byte{0});
    ++stats_.puts;
    stats_.bytes_put += put->bytes;
  } else {
    ++stats_.puts_refused;
  }
  tiers_.EndPut(put->offer.key, status);
  Send(peer, TakenMessage{id, status});
  StartReads(peer);
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
