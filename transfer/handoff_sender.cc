// SPDX-License-Identifier: Apache-2.0
#include "transfer/handoff_sender.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"

namespace penstock::transfer {

struct HandoffSender::Receiver {
  std::unique_ptr<Channel> channel;  // Never null.
  std::vector<SplitPlan> plans;      // From our slabs to its, one per group; empty until it told.
  bool on_gpus = false;              // It reads pool_on_gpus_.
};

struct HandoffSender::Handoff {
  Grant grant;
  std::uint64_t number = 0;  // Of all that ever began.
  Receiver* receiver = nullptr;
  Loop::TimerId timer{};
  Done done;
  OnSent on_sent;
  OnWanted on_wanted;
  std::vector<Told> kept_back;
  std::optional<MappedMessage> mapped;  // The hull of all that was told as mapped.
  int mapped_told = 0;
  int wanted_told = 0;  // Of the peer; at most mapped_told.
  std::optional<MonoTime> measure_until;
  std::vector<PairMeter::Layer> layers;  // Of the block, if it is to be measured with.
  Outcome outcome;
};

HandoffSender::HandoffSender(Loop& loop, std::vector<PoolGroup> pool,
                             std::vector<const std::byte*> bases, OnGone on_gone)
    : loop_(loop),
      pool_(std::move(pool)),
      bases_(std::move(bases)),
      on_gone_(std::move(on_gone)),
      meter_(loop) {
  CHECK_EQ(pool_.size(), bases_.size());
}

HandoffSender::~HandoffSender() {
  for (auto& [grant, handoff] : handoffs_) loop_.CancelTimer(handoff->timer);
}

void HandoffSender::ReadOnGpus(std::vector<GpuSlabs> gpus) {
  CHECK(receivers_.empty());
  gpus_ = std::move(gpus);
  pool_on_gpus_ = OnGpus(pool_, gpus_);
}

void HandoffSender::Begin(const Grant& grant, Channel& channel, MonoTime deadline, Done done,
                          OnSent on_sent, OnWanted on_wanted) {
  auto handoff = std::make_unique<Handoff>();
  handoff->grant = grant;
  handoff->number = ++begun_;
  handoff->receiver = receivers_.at(&channel).get();
  handoff->done = std::move(done);
  handoff->on_sent = std::move(on_sent);
  handoff->on_wanted = std::move(on_wanted);
  handoff->outcome.peer = channel.peer().name;
  handoff->timer = loop_.At(deadline, [this, grant] {
    Fail(grant, absl::DeadlineExceededError("the peer did not say that it has the KV"));
  });
  CHECK(handoffs_.emplace(grant, std::move(handoff)).second);
}

void HandoffSender::Measure(const Grant& grant, MonoTime until) {
  handoffs_.at(grant)->measure_until = until;
}

void HandoffSender::Tell(const Grant& grant, const Told& told) {
  const auto it = handoffs_.find(grant);
  if (it == handoffs_.end()) return;
  Handoff& handoff = *it->second;
  if (handoff.receiver->plans.empty()) {
    handoff.kept_back.push_back(told);
    return;
  }
  if (const absl::Status sent = Send(*handoff.receiver, handoff, told); !sent.ok())
    Fail(grant, sent);
}

void HandoffSender::TellMapped(const Grant& grant, std::int32_t first_block,
                               std::int32_t end_block) {
  const auto it = handoffs_.find(grant);
  if (it == handoffs_.end()) return;
  Handoff& handoff = *it->second;
  const MappedMessage mapped = {grant, first_block, end_block};
  handoff.mapped = Hull(handoff.mapped, mapped);
  ++handoff.mapped_told;
  const absl::Status sent = handoff.receiver->channel->Send(Encode(mapped));
  if (!sent.ok()) Fail(grant, sent);
}

absl::Status HandoffSender::Send(Receiver& receiver, Handoff& handoff, const Told& told) {
  if (receiver.on_gpus) {
    SendFromGpus(receiver, handoff, told);
    return absl::OkStatus();
  }
  const auto g = static_cast<std::size_t>(told.group);
  LegSums sums;
  for (const SplitPlan::Leg& leg : receiver.plans[g].LegsOf(told.cache_layer)) {
    std::vector<std::uint32_t>& crcs = sums.emplace_back();
    for (const std::uint32_t slab : told.slabs) {
      const std::byte* const unit =
          bases_[g] + slab * pool_[g].slab_bytes + leg.FromOffset(told.cache_layer);
      std::uint32_t& crc = crcs.emplace_back(0);
      for (const ByteRun& run : leg.plan.runs()) {
        crc = kernels::Crc32c(crc, unit + run.from, run.bytes);
      }
    }
  }
  return SendReady(handoff, told, sums);
}

// Told of when the last GPU has computed its legs'.
void HandoffSender::SendFromGpus(const Receiver& receiver, const Handoff& handoff,
                                 const Told& told) {
  const auto g = static_cast<std::size_t>(told.group);
  const std::span<const SplitPlan::Leg> legs = receiver.plans[g].LegsOf(told.cache_layer);
  struct Computing {
    LegSums sums;
    std::size_t left = 0;
    absl::Status status;
  };
  // Of the callbacks of all legs.
  const auto computing = std::make_shared<Computing>();
  computing->sums.resize(legs.size());
  computing->left = legs.size();
  auto send = [this, grant = handoff.grant, number = handoff.number, told](const Computing& all) {
    const auto it = handoffs_.find(grant);
    if (it == handoffs_.end() || it->second->number != number) return;  // It ended meanwhile.
    const absl::Status sent = all.status.ok() ? SendReady(*it->second, told, all.sums) : all.status;
    if (!sent.ok()) Fail(grant, sent);
  };
  for (std::size_t l = 0; l < legs.size(); ++l) {
    const SplitPlan::Leg& leg = legs[l];
    std::vector<std::uint64_t> offsets;
    for (const std::uint32_t slab : told.slabs) {
      offsets.push_back(slab * pool_on_gpus_[g].SlabBytesOf(leg.from) +
                        leg.FromOffset(told.cache_layer));
    }
    const GpuSlabs& gpu = gpus_[leg.from];
    gpu.sums->Compute(gpu.groups[g].base, offsets, leg.plan.runs(), told.written,
                      [watch = life_.watch(), computing, l,
                       send](const absl::StatusOr<std::vector<std::uint32_t>>& crcs) {
                        if (crcs.ok()) {
                          computing->sums[l] = *crcs;
                        } else {
                          computing->status = crcs.status();
                        }
                        if (--computing->left == 0 && !watch.over()) send(*computing);
                      });
  }
}

absl::Status HandoffSender::SendReady(Handoff& handoff, const Told& told, const LegSums& sums) {
  Receiver& receiver = *handoff.receiver;
  const std::size_t unit_bytes =
      receiver.plans[static_cast<std::size_t>(told.group)].UnitBytes(told.cache_layer);
  // As many blocks as a message holds.
  const std::size_t blocks_max = BlocksMax(sums.size());
  for (std::size_t begin = 0; begin < told.slabs.size(); begin += blocks_max) {
    const std::size_t end = std::min(told.slabs.size(), begin + blocks_max);
    ReadyMessage ready{.grant = handoff.grant,
                       .group = told.group,
                       .cache_layer = told.cache_layer,
                       .first_block = told.first_block + static_cast<std::int32_t>(begin),
                       .lineage = told.lineage,
                       .blocks = {}};
    for (std::size_t i = begin; i < end; ++i) {
      ReadyMessage::Block& block = ready.blocks.emplace_back();
      block.slab = told.slabs[i];
      block.crcs.clear();
      for (const std::vector<std::uint32_t>& crcs : sums) block.crcs.push_back(crcs[i]);
      if (handoff.measure_until.has_value()) {
        handoff.layers.push_back({told.group, told.cache_layer, block});
      }
    }
    handoff.outcome.bytes_told += ready.blocks.size() * unit_bytes;
    RETURN_IF_ERROR(receiver.channel->Send(Encode(ready)));
  }
  if (handoff.on_sent != nullptr) handoff.on_sent(told, told.slabs.size() * unit_bytes);
  return absl::OkStatus();
}

void HandoffSender::Fail(const Grant& grant, const absl::Status& why) {
  const auto it = handoffs_.find(grant);
  if (it == handoffs_.end()) return;
  // Should this be lost, the receiver's own deadline ends the grant.
  (void)it->second->receiver->channel->Send(Encode(FailedMessage{grant, why}));
  End(*it->second, why);
}

Channel& HandoffSender::AddPeer(std::unique_ptr<Channel> added) {
  Channel& channel = *added;
  auto made = std::make_unique<Receiver>();
  Receiver& receiver = *made;
  receiver.channel = std::move(added);
  receiver.on_gpus = !gpus_.empty() && channel.kind() == Kind::kNccl;
  receivers_[&channel] = std::move(made);
  channel.Start(
      {.on_message = [this,
                      &receiver](std::span<const std::byte> bytes) { OnMessage(receiver, bytes); },
       .on_closed = [this, &receiver](const absl::Status& status) { Close(receiver, status); }});
  // Should this not be sent, the channel is closing.
  (void)channel.Send(Encode(PoolMessage{receiver.on_gpus ? pool_on_gpus_ : pool_}));
  return channel;
}

void HandoffSender::OnMessage(Receiver& receiver, std::span<const std::byte> bytes) {
  const absl::StatusOr<HandoffMessage> decoded = Decode(bytes);
  if (!decoded.ok()) return Close(receiver, decoded.status());
  if (const auto* pool = std::get_if<PoolMessage>(&*decoded)) return OnPool(receiver, *pool);
  const auto of_peer = [&](const Grant& grant) -> Handoff* {
    const auto found = handoffs_.find(grant);
    // Late ones are of no interest, and of another's grant nobody may speak.
    return found != handoffs_.end() && found->second->receiver == &receiver ? found->second.get()
                                                                            : nullptr;
  };
  if (const auto* received = std::get_if<ReceivedMessage>(&*decoded)) {
    if (Handoff* const handoff = of_peer(received->grant)) return OnReceived(*handoff);
    return meter_.OnReceived(*receiver.channel, received->grant);
  }
  if (const auto* wanted = std::get_if<WantedMessage>(&*decoded)) {
    if (Handoff* const handoff = of_peer(wanted->grant)) OnWantedOf(*handoff, *wanted);
    return;
  }
  if (const auto* failed = std::get_if<FailedMessage>(&*decoded)) {
    if (Handoff* const handoff = of_peer(failed->grant)) return End(*handoff, failed->status);
    return meter_.OnFailed(*receiver.channel, failed->grant, failed->status);
  }
  Close(receiver, absl::InvalidArgumentError("a sender of KV was told Ready or Mapped"));
}

void HandoffSender::OnWantedOf(Handoff& handoff, const WantedMessage& wanted) {
  if (!handoff.mapped.has_value() || handoff.on_wanted == nullptr) return;
  const std::int32_t first = std::max(wanted.first_block, handoff.mapped->first_block);
  const std::int32_t end = std::min(wanted.end_block, handoff.mapped->end_block);
  if (first >= end) return;
  if (++handoff.wanted_told > handoff.mapped_told) {
    return Fail(handoff.grant,
                absl::ResourceExhaustedError(absl::StrCat(
                    handoff.outcome.peer, " wanted mapped blocks ", handoff.wanted_told,
                    " times, was told of such ", handoff.mapped_told, " times")));
  }
  handoff.on_wanted(first, end);
}

void HandoffSender::OnReceived(Handoff& handoff) {
  if (!handoff.measure_until.has_value()) return End(handoff, absl::OkStatus());
  if (handoff.layers.empty()) return;  // Said again: it is being measured.
  meter_.Add({.grant = handoff.grant,
              .channel = handoff.receiver->channel.get(),
              .layers = std::exchange(handoff.layers, {}),
              .block_bytes = handoff.outcome.bytes_told,
              .until = *handoff.measure_until},
             [this, &handoff](const absl::Status& status, const PairFigures& figures) {
               handoff.outcome.figures = figures;
               End(handoff, status);
             });
}

void HandoffSender::OnPool(Receiver& receiver, const PoolMessage& message) {
  if (!receiver.plans.empty()) {
    return Close(receiver, absl::InvalidArgumentError("a peer described its pool twice"));
  }
  if (const absl::Status fits = CheckParts(message.groups, receiver.channel->kind()); !fits.ok()) {
    return Close(receiver, fits);
  }
  absl::StatusOr<std::vector<SplitPlan>> plans =
      MakePlans(receiver.on_gpus ? pool_on_gpus_ : pool_, message.groups);
  if (!plans.ok()) return Close(receiver, plans.status());
  receiver.plans = *std::move(plans);
  std::vector<Grant> waiting;
  for (const auto& [grant, handoff] : handoffs_) {
    if (handoff->receiver == &receiver) waiting.push_back(grant);
  }
  for (const Grant& grant : waiting) {
    const auto it = handoffs_.find(grant);
    if (it == handoffs_.end()) continue;  // Ended by what another one's `done` did.
    for (const Told& told : std::exchange(it->second->kept_back, {})) Tell(grant, told);
  }
}

void HandoffSender::End(Handoff& handoff, const absl::Status& status) {
  const auto it = handoffs_.find(handoff.grant);
  const std::unique_ptr<Handoff> ended = std::move(it->second);
  handoffs_.erase(it);
  loop_.CancelTimer(ended->timer);
  meter_.Remove(ended->grant);
  ended->outcome.status = status;
  ended->done(ended->outcome);
}

void HandoffSender::Close(Receiver& closed, const absl::Status& why) {
  const auto it = receivers_.find(closed.channel.get());
  const std::unique_ptr<Receiver> receiver = std::move(it->second);
  receivers_.erase(it);
  // First, so that nobody begins anew on it.
  if (on_gone_ != nullptr) on_gone_(*receiver->channel, why);
  std::vector<Grant> bound;
  for (auto& [grant, handoff] : handoffs_) {
    if (handoff->receiver == receiver.get()) bound.push_back(grant);
  }
  for (const Grant& grant : bound) {
    // The end of one may end others.
    if (const auto found = handoffs_.find(grant); found != handoffs_.end()) {
      End(*found->second, why);
    }
  }
}

}  // namespace penstock::transfer
