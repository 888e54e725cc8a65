// SPDX-License-Identifier: Apache-2.0
#include "transfer/handoff_receiver.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "transfer/handoff_receiver_impl.h"

namespace penstock::transfer {
namespace {

constexpr std::size_t kHeldMax = 1 << 16;

}  // namespace

std::int32_t HandoffReceiver::Handoff::BlocksValid() const {
  std::int32_t valid = target.end_block;
  for (const Group& g : groups) {
    for (std::size_t i = 0; i < g.units.size(); ++i) {
      if (g.units[i].state == UnitState::kVerified) continue;
      valid = std::min(valid,
                       g.first + static_cast<std::int32_t>(i % static_cast<std::size_t>(g.blocks)));
    }
  }
  return valid;
}

HandoffReceiver::HandoffReceiver(Loop& loop, LinkTurns& turns, std::vector<PoolGroup> pool,
                                 Options options, OnGone on_gone)
    : loop_(loop),
      turns_(turns),
      pool_(std::move(pool)),
      options_(options),
      on_gone_(std::move(on_gone)) {
  CHECK_GE(options.tries, 1);
  CHECK_GE(options.reads_in_flight_max, 1u);
}

HandoffReceiver::~HandoffReceiver() {
  senders_.clear();  // From here on no byte lands anywhere.
  for (auto& [grant, handoff] : handoffs_) loop_.CancelTimer(handoff->timer);
}

void HandoffReceiver::Expect(const Grant& grant, Target target, Done done) {
  CHECK_EQ(target.groups.size(), pool_.size());
  auto handoff = std::make_unique<Handoff>();
  handoff->grant = grant;
  handoff->done = std::move(done);
  for (std::size_t g = 0; g < pool_.size(); ++g) {
    Handoff::Group group;
    group.first = std::max(target.first_missing, target.groups[g].first_block);
    group.blocks = std::max(0, target.end_block - group.first);
    CHECK_GE(static_cast<std::int32_t>(target.groups[g].slabs.size()),
             target.end_block - target.groups[g].first_block);
    const std::int64_t units = std::int64_t{group.blocks} * pool_[g].side.layout.group.cache_layers;
    group.units.resize(static_cast<std::size_t>(units));
    handoff->missing += units;
    handoff->groups.push_back(std::move(group));
  }
  handoff->settled = target.elsewhere_first >= target.elsewhere_end;
  handoff->target = std::move(target);
  Handoff& placed = *handoff;
  CHECK(handoffs_.emplace(grant, std::move(handoff)).second);
  placed.timer = loop_.At(placed.target.deadline, [this, &placed] {
    Fail(placed,
         absl::DeadlineExceededError(absl::StrCat(
             "KV of ", placed.missing, " layers of blocks did not arrive by the deadline")),
         /*tell_peer=*/true);
  });
  if (placed.missing == 0) {
    loop_.Post([this, grant] {
      const auto it = handoffs_.find(grant);
      if (it != handoffs_.end() && !it->second->ending) End(*it->second);
    });
  }
}

void HandoffReceiver::Settle(const Grant& grant, std::int32_t end_block) {
  const auto it = handoffs_.find(grant);
  if (it == handoffs_.end() || it->second->ending) return;
  Handoff& handoff = *it->second;
  CHECK(!std::exchange(handoff.settled, true));
  for (std::size_t g = 0; g < handoff.groups.size(); ++g) {
    const Handoff::Group& group = handoff.groups[g];
    const std::int32_t first = std::max(group.first, handoff.target.elsewhere_first);
    const std::int32_t layers = pool_[g].side.layout.group.cache_layers;
    for (std::int32_t b = first; b < std::min(end_block, handoff.target.elsewhere_end); ++b) {
      for (std::int32_t layer = 0; layer < layers; ++layer) {
        handoff.At(static_cast<std::int32_t>(g), layer, b).state = Handoff::UnitState::kVerified;
      }
      handoff.missing -= layers;
    }
  }
  if (handoff.sender == nullptr) return;  // Who fills the rest, or has nothing to, has not spoken.
  Sender& sender = *handoff.sender;
  for (const ReadyMessage& message : std::exchange(handoff.held, {})) {
    if (const absl::Status queued = Queue(sender, handoff, message); !queued.ok()) {
      return Fail(handoff, queued, /*tell_peer=*/true);
    }
  }
  if (handoff.missing == 0) return Complete(handoff);
  if (handoff.mapped.has_value()) Want(handoff, *handoff.mapped);
  StartReads(sender);
}

void HandoffReceiver::GiveUp(const Grant& grant, const absl::Status& why) {
  const auto it = handoffs_.find(grant);
  if (it != handoffs_.end()) Fail(*it->second, why, /*tell_peer=*/true);
}

void HandoffReceiver::OnReady(Sender& sender, const ReadyMessage& message) {
  if (sender.plans.empty()) {
    return Close(sender, absl::InvalidArgumentError("a peer told of blocks before its pool"));
  }
  if (!handoffs_.contains(message.grant) && (message.grant.number & kProbeGrant) != 0) {
    if (message.blocks.empty()) {  // Should the answer be lost, it is not waited for for long.
      return (void)sender.channel->Send(Encode(ReceivedMessage{message.grant}));
    }
    if (const absl::Status expected = ExpectProbe(sender, message); !expected.ok()) {
      return Refuse(sender, message.grant, expected);
    }
  }
  Handoff* const found = FilledBy(sender, message.grant);
  if (found == nullptr) return;
  Handoff& handoff = *found;
  if (message.lineage.loss > handoff.target.accepts) {
    return Fail(handoff,
                absl::FailedPreconditionError(
                    absl::StrCat("KV of loss class ", ToAbsl(ToString(message.lineage.loss)),
                                 ", accepted is ", ToAbsl(ToString(handoff.target.accepts)))),
                /*tell_peer=*/true);
  }
  handoff.outcome.lineage.Join(message.lineage);
  if (!handoff.settled && message.first_block < handoff.target.elsewhere_end) {
    // As many as there can be for each layer of a pass over a block at least.
    if (handoff.held.size() >= kHeldMax) {
      return Fail(handoff,
                  absl::ResourceExhaustedError(absl::StrCat(
                      handoff.held.size(), " messages wait for blocks from elsewhere")),
                  /*tell_peer=*/true);
    }
    handoff.held.push_back(message);
    const auto end = message.first_block + static_cast<std::int64_t>(message.blocks.size());
    // Of one who has others of them mapped, those are sooner had there than from it.
    if (end > handoff.target.elsewhere_first && !handoff.mapped.has_value() &&
        handoff.target.on_told_elsewhere != nullptr) {
      std::exchange(handoff.target.on_told_elsewhere, nullptr)();
    }
    return;
  }
  if (const absl::Status queued = Queue(sender, handoff, message); !queued.ok()) {
    return Fail(handoff, queued, /*tell_peer=*/true);
  }
  if (handoff.missing == 0) return Complete(handoff);
  StartReads(sender);
}

HandoffReceiver::Handoff* HandoffReceiver::FilledBy(Sender& sender, const Grant& grant) {
  const auto it = handoffs_.find(grant);
  if (it == handoffs_.end()) {
    Refuse(sender, grant, absl::AbortedError("this grant is over, or never was"));
    return nullptr;
  }
  Handoff& handoff = *it->second;
  if (handoff.ending) return nullptr;  // Its peer knows, or is the reason.
  if (handoff.sender == nullptr) Bind(handoff, sender);
  if (handoff.sender == &sender) return &handoff;
  Refuse(sender, grant,
         absl::AbortedError(
             absl::StrCat("this grant is being filled by ", handoff.sender->channel->peer().name)));
  return nullptr;
}

void HandoffReceiver::OnMapped(Sender& sender, const MappedMessage& message) {
  if (sender.plans.empty()) {
    return Close(sender, absl::InvalidArgumentError("a peer told of blocks before its pool"));
  }
  Handoff* const handoff = FilledBy(sender, message.grant);
  if (handoff == nullptr) return;
  const absl::Status status =
      CheckRange("the last mapped block", message.end_block, 1, handoff->target.end_block);
  if (!status.ok()) return Fail(*handoff, status, /*tell_peer=*/true);
  if (handoff->settled) return Want(*handoff, message);
  handoff->mapped = Hull(handoff->mapped, message);
}

void HandoffReceiver::Want(Handoff& handoff, const MappedMessage& mapped) {
  WantedMessage wanted = {.grant = handoff.grant, .first_block = mapped.end_block, .end_block = 0};
  for (Handoff::Group& group : handoff.groups) {
    const std::int32_t begin = std::max(group.first, mapped.first_block);
    for (std::size_t i = 0; i < group.units.size(); ++i) {
      if (group.units[i].state != Handoff::UnitState::kMissing) continue;
      const std::int32_t block =
          group.first + static_cast<std::int32_t>(i % static_cast<std::size_t>(group.blocks));
      if (block < begin || block >= mapped.end_block) continue;
      wanted.first_block = std::min(wanted.first_block, block);
      wanted.end_block = std::max(wanted.end_block, block + 1);
    }
  }
  if (wanted.end_block == 0) return;
  // Should this be lost, the handoff ends by its deadline.
  (void)handoff.sender->channel->Send(Encode(wanted));
}

void HandoffReceiver::LandOnGpus(std::vector<GpuSlabs> gpus) {
  CHECK(senders_.empty());
  gpus_ = std::move(gpus);
  pool_on_gpus_ = OnGpus(pool_, gpus_);
}

bool HandoffReceiver::BringsToGpus(const Sender& sender) const {
  return !gpus_.empty() && sender.channel->kind() == Kind::kNccl;
}

std::byte* HandoffReceiver::PlaceOf(const Sender& sender, const Target& whole, std::size_t group,
                                    const SplitPlan::Leg& leg, std::int32_t block) const {
  const Target::Group& target = whole.groups[group];
  const auto i = static_cast<std::size_t>(block - target.first_block);
  if (!BringsToGpus(sender)) return target.slabs[i];
  if (whole.lands_nowhere) return nullptr;
  CHECK_LT(i, target.on_gpus.size());
  const GpuSlabs::Group& own = gpus_[leg.to].groups[group];
  return own.base + target.on_gpus[i] * own.part.slab_bytes;
}

void HandoffReceiver::Bind(Handoff& handoff, Sender& sender) {
  handoff.sender = &sender;
  handoff.outcome.peer = sender.channel->peer().name;
  handoff.outcome.kind = sender.channel->kind();
}

absl::Status HandoffReceiver::Queue(Sender& sender, Handoff& handoff, const ReadyMessage& message) {
  const auto group_count = static_cast<std::int64_t>(pool_.size());
  RETURN_IF_ERROR(CheckRange("group", message.group, 0, group_count - 1));
  const auto g = static_cast<std::size_t>(message.group);
  const Handoff::Group& wanted = handoff.groups[g];
  const PageLayout& layout = pool_[g].side.layout;
  RETURN_IF_ERROR(CheckRange("cache_layer", message.cache_layer, 0, layout.group.cache_layers - 1));
  const auto last = message.first_block + static_cast<std::int64_t>(message.blocks.size());
  RETURN_IF_ERROR(CheckRange("the last block", last, 0, handoff.target.end_block));

  const SplitPlan& plan = sender.plans[g];
  const std::span<const SplitPlan::Leg> legs = plan.LegsOf(message.cache_layer);
  for (const ReadyMessage::Block& block : message.blocks) {
    if (block.crcs.size() == legs.size()) continue;
    return absl::InvalidArgumentError(absl::StrCat("a block with ", block.crcs.size(),
                                                   " checksums, by the plan it goes in ",
                                                   legs.size(), " legs"));
  }
  // Blocks that are new and lie side by side go together, as many as a read may have.
  const std::size_t most =
      1 + (options_.bytes_in_flight_max * legs.size() - 1) / plan.UnitBytes(message.cache_layer);
  std::size_t begin = 0;
  const auto flush = [&](std::size_t end) {
    for (std::size_t leg = 0; begin < end && leg < legs.size(); ++leg) {
      QueueLeg(sender, handoff, message, leg, begin, end);
    }
    begin = end;
  };
  for (std::size_t i = 0; i < message.blocks.size(); ++i) {
    const std::int32_t block = message.first_block + static_cast<std::int32_t>(i);
    Handoff::UnitOfBlock* const unit =
        block < wanted.first ? nullptr : &handoff.At(message.group, message.cache_layer, block);
    if (unit == nullptr || unit->state != Handoff::UnitState::kMissing) {  // Told again: not new.
      flush(i);
      begin = i + 1;
      continue;
    }
    *unit = {Handoff::UnitState::kTold, static_cast<std::uint8_t>(legs.size())};
    if (i + 1 - begin == most) flush(i + 1);
  }
  flush(message.blocks.size());
  return absl::OkStatus();
}

void HandoffReceiver::QueueLeg(Sender& sender, Handoff& handoff, const ReadyMessage& message,
                               std::size_t leg_number, std::size_t begin, std::size_t end) {
  const auto g = static_cast<std::size_t>(message.group);
  const PoolGroup& theirs = sender.pool[g];
  const SplitPlan::Leg& leg = sender.plans[g].LegsOf(message.cache_layer)[leg_number];
  Stretch stretch;
  stretch.handoff = &handoff;
  stretch.span = handoff.outcome.spans.size();
  stretch.first_block = message.first_block + static_cast<std::int32_t>(begin);
  stretch.segment = theirs.SegmentOf(leg.from);
  stretch.lane = {static_cast<std::uint8_t>(leg.from), static_cast<std::uint8_t>(leg.to)};
  for (std::size_t i = begin; i < end; ++i) {
    const std::int32_t block = message.first_block + static_cast<std::int32_t>(i);
    const ReadyMessage::Block& from = message.blocks[i];
    std::byte* const slab = PlaceOf(sender, handoff.target, g, leg, block);
    stretch.units.push_back(
        {.from = from.slab * theirs.SlabBytesOf(leg.from) + leg.FromOffset(message.cache_layer),
         .to = slab == nullptr ? nullptr : slab + leg.ToOffset(message.cache_layer),
         .runs = leg.plan.runs()});
    stretch.crcs.push_back(from.crcs[leg_number]);
    stretch.bytes += leg.plan.unit_bytes();
  }
  handoff.outcome.spans.push_back({.group = message.group,
                                   .cache_layer = message.cache_layer,
                                   .blocks = static_cast<std::int32_t>(stretch.units.size()),
                                   .bytes = stretch.bytes,
                                   .told = loop_.Now(),
                                   .begun = {},
                                   .verified = {}});
  const std::uint64_t id = next_stretch_++;
  sender.queue.emplace(handoff.target.deadline, id);
  sender.stretches.emplace(id, std::move(stretch));
  ++handoff.stretches;
}

void HandoffReceiver::StartReads(Sender& sender) {
  while (!sender.queue.empty() && sender.reads_in_flight < options_.reads_in_flight_max) {
    const std::uint64_t id = sender.queue.begin()->second;
    Stretch& stretch = sender.stretches.at(id);
    if (sender.bytes_in_flight > 0 &&
        sender.bytes_in_flight + stretch.bytes > options_.bytes_in_flight_max * sender.legs_max) {
      return;
    }
    sender.queue.erase(sender.queue.begin());
    sender.bytes_in_flight += stretch.bytes;
    ++sender.reads_in_flight;
    stretch.turn = turns_.Ask(sender.channel->link_in(), MoveClass::kHandoff, stretch.bytes,
                              stretch.handoff->target.deadline,
                              [this, &sender, id](const absl::Status& status) {
                                if (!status.ok()) return OnRead(sender, id, status);
                                Read(sender, id);
                              });
    if (stretch.turn.begun()) Read(sender, id);
  }
}

void HandoffReceiver::Read(Sender& sender, std::uint64_t id) {
  Stretch& stretch = sender.stretches.at(id);
  Handoff& handoff = *stretch.handoff;
  Span& span = handoff.outcome.spans[stretch.span];
  span.begun = loop_.Now();
  ++stretch.tries;
  stretch.read = sender.channel->Read(
      {.segment = stretch.segment,
       .units = stretch.units,
       .crcs = stretch.crcs,
       .deadline = handoff.target.deadline,
       .parts = &stretch.parts,
       .lane = stretch.lane},
      [this, &sender, id](const absl::Status& status) { OnRead(sender, id, status); });
}

void HandoffReceiver::OnRead(Sender& sender, std::uint64_t id, const absl::Status& status) {
  const auto it = sender.stretches.find(id);
  CHECK(it != sender.stretches.end());
  Stretch& stretch = it->second;
  Handoff& handoff = *stretch.handoff;
  sender.bytes_in_flight -= stretch.bytes;
  --sender.reads_in_flight;
  stretch.turn.End();
  stretch.read.reset();
  if (absl::IsDataLoss(status) && !handoff.ending && stretch.tries < options_.tries) {
    ++handoff.outcome.repeated_reads;
    sender.queue.emplace(handoff.target.deadline, id);
    return StartReads(sender);
  }
  Span& span = handoff.outcome.spans[stretch.span];
  if (status.ok()) {
    span.verified = loop_.Now();
    span.parts = stretch.parts;
    handoff.outcome.bytes += stretch.bytes;
    for (std::int32_t i = 0; i < span.blocks; ++i) {
      Handoff::UnitOfBlock& unit =
          handoff.At(span.group, span.cache_layer, stretch.first_block + i);
      if (--unit.legs_left > 0) continue;
      unit.state = Handoff::UnitState::kVerified;
      --handoff.missing;
    }
  }
  sender.stretches.erase(it);
  --handoff.stretches;
  if (handoff.ending) {
    EndIfDrained(handoff);
  } else if (!status.ok()) {
    Fail(handoff, status, /*tell_peer=*/true);
  } else if (handoff.missing == 0) {
    Complete(handoff);
  }
  StartReads(sender);
}

// All is there and verified, and its sender is known.
void HandoffReceiver::Complete(Handoff& handoff) {
  // Should this be lost, the pages go when the sender's own deadline ends.
  (void)handoff.sender->channel->Send(Encode(ReceivedMessage{handoff.grant}));
  End(handoff);
}

void HandoffReceiver::OnFailed(Sender& sender, const FailedMessage& message) {
  const auto it = handoffs_.find(message.grant);
  if (it == handoffs_.end() || it->second->ending) return;
  Handoff& handoff = *it->second;
  if (handoff.sender == nullptr) Bind(handoff, sender);
  // Only who fills a grant may end it.
  if (handoff.sender == &sender) Fail(handoff, message.status, /*tell_peer=*/false);
}

void HandoffReceiver::Fail(Handoff& handoff, const absl::Status& why, bool tell_peer) {
  if (handoff.ending) return;
  handoff.ending = true;
  handoff.outcome.status = why;
  if (handoff.sender != nullptr) {
    Sender& sender = *handoff.sender;
    if (tell_peer) Refuse(sender, handoff.grant, why);
    for (auto it = sender.stretches.begin(); it != sender.stretches.end();) {
      Stretch& stretch = it->second;
      if (stretch.handoff != &handoff) {
        ++it;
      } else if (stretch.read.has_value()) {
        sender.channel->Cancel(*stretch.read);
        ++it;
      } else {
        // In the peer's queue, or in that of its link.
        if (sender.queue.erase({handoff.target.deadline, it->first}) == 0) {
          sender.bytes_in_flight -= stretch.bytes;
          --sender.reads_in_flight;
        }
        it = sender.stretches.erase(it);
        --handoff.stretches;
      }
    }
  }
  if (handoff.sender != nullptr) StartReads(*handoff.sender);  // There may be room for others'.
  EndIfDrained(handoff);
}

void HandoffReceiver::EndIfDrained(Handoff& handoff) {
  if (handoff.stretches == 0) End(handoff);
}

void HandoffReceiver::End(Handoff& handoff) {
  const auto it = handoffs_.find(handoff.grant);
  const std::unique_ptr<Handoff> ended = std::move(it->second);
  handoffs_.erase(it);
  loop_.CancelTimer(ended->timer);
  ended->outcome.blocks_valid = ended->BlocksValid();
  ended->done(ended->outcome);
}

}  // namespace penstock::transfer
