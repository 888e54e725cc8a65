// SPDX-License-Identifier: Apache-2.0
// Who the receiver of handoffs reads from: peers that come, describe their pools, try the way, and
// go.
#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "transfer/handoff_receiver.h"
#include "transfer/handoff_receiver_impl.h"

namespace penstock::transfer {
namespace {

// Each holds memory, most of them a block's, for so long at most.
constexpr int kProbesMax = 8;
constexpr Duration kProbeTime = std::chrono::seconds(10);

}  // namespace

void HandoffReceiver::AddPeer(std::unique_ptr<Channel> channel) {
  senders_.push_back(std::make_unique<Sender>());
  Sender& sender = *senders_.back();
  sender.channel = std::move(channel);
  sender.channel->Start(
      {.on_message = [this,
                      &sender](std::span<const std::byte> bytes) { OnMessage(sender, bytes); },
       .on_closed = [this, &sender](const absl::Status& status) { Close(sender, status); }});
  // Should this not be sent, the channel is closing.
  (void)sender.channel->Send(Encode(PoolMessage{BringsToGpus(sender) ? pool_on_gpus_ : pool_}));
}

void HandoffReceiver::OnMessage(Sender& sender, std::span<const std::byte> bytes) {
  const absl::StatusOr<HandoffMessage> decoded = Decode(bytes);
  if (!decoded.ok()) return Close(sender, decoded.status());
  if (const auto* pool = std::get_if<PoolMessage>(&*decoded)) return OnPool(sender, *pool);
  if (const auto* ready = std::get_if<ReadyMessage>(&*decoded)) return OnReady(sender, *ready);
  if (const auto* failed = std::get_if<FailedMessage>(&*decoded)) return OnFailed(sender, *failed);
  if (const auto* mapped = std::get_if<MappedMessage>(&*decoded)) return OnMapped(sender, *mapped);
  Close(sender, absl::InvalidArgumentError("a receiver of KV was told Received or Wanted"));
}

void HandoffReceiver::OnPool(Sender& sender, const PoolMessage& message) {
  if (!sender.plans.empty()) {
    return Close(sender, absl::InvalidArgumentError("a peer described its pool twice"));
  }
  if (const absl::Status fits = CheckParts(message.groups, sender.channel->kind()); !fits.ok()) {
    return Close(sender, fits);
  }
  absl::StatusOr<std::vector<SplitPlan>> plans =
      MakePlans(message.groups, BringsToGpus(sender) ? pool_on_gpus_ : pool_);
  if (!plans.ok()) return Close(sender, plans.status());
  sender.plans = *std::move(plans);
  for (const SplitPlan& plan : sender.plans) {
    sender.legs_max = std::max(sender.legs_max, plan.legs_max());
  }
  sender.pool = message.groups;
}

absl::Status HandoffReceiver::ExpectProbe(const Sender& sender, const ReadyMessage& first) {
  const auto blocks = first.first_block + static_cast<std::int64_t>(first.blocks.size());
  std::size_t block_bytes = 0;
  for (const SplitPlan& plan : sender.plans) block_bytes += plan.BlockBytes();
  const std::size_t most = std::max(std::size_t{1}, kProbeBytesMax / block_bytes);
  RETURN_IF_ERROR(CheckRange("blocks of a probe", blocks, 1, static_cast<std::int64_t>(most)));
  const bool measures = blocks > 1;
  if (probes_ >= kProbesMax || (measures && measured_)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(probes_, " pairs are being tried here, ", measured_ ? 1 : 0, " measured"));
  }
  ++probes_;
  measured_ |= measures;
  // The device has no memory to spare: what comes there is checked in its staging ring.
  const bool on_gpus = BringsToGpus(sender);
  const auto scratch = std::make_shared<std::vector<std::vector<std::byte>>>();
  Target target;
  target.end_block = static_cast<std::int32_t>(blocks);
  target.deadline = loop_.Now() + kProbeTime;
  target.lands_nowhere = on_gpus;
  for (const PoolGroup& group : pool_) {
    Target::Group& to = target.groups.emplace_back();
    if (on_gpus) {
      to.slabs.assign(static_cast<std::size_t>(blocks), nullptr);
      continue;
    }
    std::vector<std::byte>& slabs =
        scratch->emplace_back(group.slab_bytes * static_cast<std::size_t>(blocks));
    for (std::size_t at = 0; at < slabs.size(); at += group.slab_bytes) {
      to.slabs.push_back(slabs.data() + at);
    }
  }
  // Kept until no byte can land there any more.
  Expect(first.grant, std::move(target), [this, scratch, measures](const Outcome&) {
    --probes_;
    if (measures) measured_ = false;
  });
  return absl::OkStatus();
}

void HandoffReceiver::Refuse(Sender& sender, const Grant& grant, const absl::Status& why) {
  // Should this be lost, the sender's own deadline ends the grant.
  (void)sender.channel->Send(Encode(FailedMessage{grant, why}));
}

void HandoffReceiver::Close(Sender& closed, const absl::Status& why) {
  const auto it = std::ranges::find_if(
      senders_, [&](const std::unique_ptr<Sender>& sender) { return sender.get() == &closed; });
  const std::unique_ptr<Sender> sender = std::move(*it);
  senders_.erase(it);
  const Peer peer = sender->channel->peer();
  // With the channel, whatever it reads ends, in silence.
  sender->channel.reset();
  for (auto& [id, stretch] : sender->stretches) --stretch.handoff->stretches;
  std::vector<Grant> bound;
  for (auto& [grant, handoff] : handoffs_) {
    if (handoff->sender != sender.get()) continue;
    handoff->sender = nullptr;
    bound.push_back(grant);
  }
  for (const Grant& grant : bound) {
    // The end of one may end others.
    const auto found = handoffs_.find(grant);
    if (found == handoffs_.end()) continue;
    if (found->second->ending) {
      EndIfDrained(*found->second);
    } else {
      Fail(*found->second, why, /*tell_peer=*/false);
    }
  }
  if (on_gone_ != nullptr) on_gone_(peer, why);
}

}  // namespace penstock::transfer
