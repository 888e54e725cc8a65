// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/replicator.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"

namespace penstock::kvstore {

Replicator::Replicator(Loop& loop, TierSet& tiers, StoreLinks& links, transfer::LinkTurns& turns,
                       Options options)
    : loop_(loop), tiers_(tiers), links_(links), turns_(turns), options_(std::move(options)) {
  if (!options_.secret.empty()) secret_ = Secret(options_.secret);
}

Replicator::~Replicator() {
  for (Find& find : finds_) {
    loop_.CancelTimer(find.timer);
    if (find.link != nullptr) find.link->Forget(find.id);
  }
}

void Replicator::Copy(Order order) {
  if (queue_.size() >= options_.orders_max) {
    stats_.passed_over += order.chains.size();
    return;
  }
  queue_.push_back(std::move(order));
  Pump();
}

void Replicator::Pump() {
  while (!queue_.empty() && finds_.size() < options_.finds_max) {
    Order order = std::move(queue_.front());
    queue_.pop_front();
    std::vector<std::size_t> wanted;
    for (std::size_t i = 0; i < order.chains.size() && wanted.size() < kChainsMax; ++i) {
      const BlockKey key = {order.space, order.chains[i]};
      if (tiers_.Where(key).value_or(Tier::kRemote) == Tier::kRemote) wanted.push_back(i);
    }
    stats_.passed_over += order.chains.size() - wanted.size();
    if (wanted.empty() || order.deadline <= loop_.Now()) {
      stats_.passed_over += wanted.size();
      continue;
    }
    Find& find = finds_.emplace_back();
    find.order = std::move(order);
    find.wanted = std::move(wanted);
    find.timer = loop_.At(find.order.deadline, [this, &find] {
      Stop(find);
      EndIfOver(find);
    });
    // Not from inside: a link that is open tells at once.
    loop_.Post(life_.Guard([this, &find] {
      links_.Get(find.order.from,
                 [this, &find, watch = life_.watch()](const absl::StatusOr<StoreLink*>& link) {
                   if (!watch.over()) Begin(find, link);
                 });
    }));
  }
}

// A find is there until its link has told, whatever comes before.
void Replicator::Begin(Find& find, const absl::StatusOr<StoreLink*>& link) {
  find.connected = true;
  if (!link.ok() || !find.asking) {
    find.asking = false;
    return EndIfOver(find);
  }
  find.link = *link;
  find.id = find.link->Expect(
      [this, &find, watch = life_.watch()](const absl::StatusOr<StoreMessage>& answer) {
        if (watch.over()) return;
        OnAnswer(find, answer);
        EndIfOver(find);
      });
  FindMessage ask = {.id = find.id, .space = find.order.space};
  const auto within = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::max(Duration(), find.order.deadline - loop_.Now()));
  ask.within_ms = static_cast<std::uint32_t>(std::min<std::int64_t>(1 + within.count(), 600'000));
  for (const std::size_t i : find.wanted) ask.chains.push_back(find.order.chains[i]);
  find.link->Send(ask).IgnoreError();  // A channel that is full is a channel that ends.
}

void Replicator::OnAnswer(Find& find, const absl::StatusOr<StoreMessage>& answer) {
  if (!answer.ok()) {  // With the channel its reads have ended.
    find.link = nullptr;
    find.asking = false;
    while (!find.reading.empty()) Drop(find, find.reading.begin()->first, answer.status());
    return;
  }
  if (!find.asking) return;
  const auto* const found = std::get_if<FoundMessage>(&*answer);
  if (found == nullptr) {  // Missing, or nonsense: what was found before is still read.
    find.asking = false;
    return;
  }
  if (const absl::Status status = OnFound(find, *found); !status.ok()) {
    ++stats_.refused;
    LOG_WARNING("copy of another node refused",
                {{"from", find.order.from.peer.name}, {"reason", status.ToString()}});
    return Stop(find);
  }
  if (find.found == find.wanted.size()) find.asking = false;
}

absl::Status Replicator::OnFound(Find& find, const FoundMessage& found) {
  const std::size_t index = find.found;
  if (found.index != index || index >= find.wanted.size()) {
    return absl::InvalidArgumentError(absl::StrCat("found copy ", found.index, ", asked was ",
                                                   index, " of ", find.wanted.size()));
  }
  const std::size_t at = find.wanted[index];
  OfferMessage offer = {.key = {find.order.space, find.order.chains[at]},
                        .parent = at == 0 ? find.order.parent : find.order.chains[at - 1],
                        .tenant = find.order.tenant,
                        .segment = found.segment,
                        .offset = found.offset,
                        .header = found.header};
  ASSIGN_OR_RETURN(const FrameHeader header, ParseFrameHeader(found.header, {}));
  offer.tokens_before = static_cast<std::uint32_t>(header.first_position);
  ASSIGN_OR_RETURN(std::unique_ptr<FramePut> made, FramePut::Make(std::move(offer), secret_));
  ++find.found;
  FramePut& put = *(find.reading[index].put = std::move(made));
  put.turn =
      turns_.Ask(find.link->channel()->link_in(), transfer::MoveClass::kReplication, put.bytes(),
                 find.order.deadline, [this, &find, index](const absl::Status& status) {
                   if (status.ok()) {
                     Read(find, index);
                   } else {
                     Drop(find, index, status);
                   }
                   EndIfOver(find);
                 });
  if (put.turn.begun()) Read(find, index);
  return absl::OkStatus();
}

void Replicator::Read(Find& find, std::size_t index) {
  Find::Reading& reading = find.reading.at(index);
  if (const absl::Status begun = reading.put->Begin(tiers_); !begun.ok()) {
    return Drop(find, index, begun);  // Somebody put it meanwhile, or there is no room.
  }
  reading.read = find.link->channel()->Read(
      reading.put->Read(find.order.deadline),
      [this, &find, index, watch = life_.watch()](const absl::Status& status) {
        if (watch.over()) return;
        OnRead(find, index, status);
        EndIfOver(find);
      });
}

void Replicator::OnRead(Find& find, std::size_t index, const absl::Status& status) {
  const std::uint32_t bytes = find.reading.at(index).put->bytes();
  Drop(find, index, status);
  if (!status.ok()) return;
  ++find.copied;
  ++stats_.copied;
  stats_.bytes += bytes;
}

// Nothing is read of it any more.
void Replicator::Drop(Find& find, std::size_t index, const absl::Status& why) {
  const auto it = find.reading.find(index);
  const std::unique_ptr<FramePut> put = std::move(it->second.put);
  find.reading.erase(it);
  put->End(tiers_, why);
  if (find.link == nullptr) return;
  const std::size_t done = find.reading.empty() ? find.found : find.reading.begin()->first;
  find.link->Send(ReleaseMessage{find.id, static_cast<std::uint32_t>(done)}).IgnoreError();
}

// Nothing more of it; reads under way end first.
void Replicator::Stop(Find& find) {
  find.asking = false;
  std::vector<std::size_t> waiting;
  for (const auto& [index, reading] : find.reading) {
    if (!reading.read.has_value()) {
      waiting.push_back(index);
    } else if (find.link != nullptr) {
      find.link->Cancel(*reading.read);
    }
  }
  for (const std::size_t index : waiting) {
    Drop(find, index, absl::DeadlineExceededError("the order is over"));
  }
}

void Replicator::EndIfOver(Find& find) {
  if (find.over || !find.connected || find.asking || !find.reading.empty()) return;
  find.over = true;
  loop_.CancelTimer(find.timer);
  stats_.passed_over += find.wanted.size() - find.copied;
  if (find.link != nullptr) {
    find.link->Forget(find.id);
    find.link->Send(ReleaseMessage{find.id, UINT32_MAX}).IgnoreError();
    find.link = nullptr;
  }
  // Who calls may still look at it.
  loop_.Post(life_.Guard([this, &find] {
    finds_.remove_if([&](const Find& other) { return &other == &find; });
    Pump();
  }));
}

}  // namespace penstock::kvstore
