// SPDX-License-Identifier: Apache-2.0
#include "kvstore/client/keeper.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "kvstore/client/keeper_shared.h"

namespace penstock::kvstore {
namespace {

constexpr std::size_t kAskMax = 512;  // Blocks of one message.
// Of blocks encoded one is measured by every codec, which takes as long as encoding five.
constexpr std::uint64_t kMeasureEvery = 256;

std::vector<std::array<Namespace, kLossClasses>> CopySpaces(const LossSpaces& spaces,
                                                            std::size_t groups) {
  std::vector<std::array<Namespace, kLossClasses>> all(groups);
  for (std::uint32_t g = 0; g < groups; ++g) {
    for (std::size_t i = 0; i < kLossClasses; ++i) {
      all[g][i] = CopySpaceOf(spaces, g, static_cast<LossClass>(i));
    }
  }
  return all;
}

}  // namespace

std::size_t Keeper::SlotBytes(const Options& options, const std::vector<PageLayout>& layouts) {
  std::size_t most = 0;
  for (const PageLayout& layout : layouts) {
    const auto take = [&](CodecId codec) {
      most =
          std::max(most, FrameBytesMax(CodecOf(codec), ShapeOf(layout), !options.secret.empty()));
    };
    for (const Form& form : options.forms) take(form.codec);
    if (!options.choose) continue;
    for (const CodecId codec : AllCodecs()) {
      if (IsLossless(codec) && CheckTakes(codec, layout.group.dtype).ok()) take(codec);
    }
  }
  return (most + kFramePageBytes - 1) / kFramePageBytes * kFramePageBytes;
}

Keeper::Keeper(Loop& loop, StoreLinks& links, transfer::LinkTurns& turns, TaskPool& tasks,
               const LossSpaces& spaces, Pool pool, Staging staging, Options options)
    : loop_(loop),
      links_(links),
      turns_(turns),
      tasks_(tasks),
      pool_(std::move(pool)),
      staging_(staging),
      options_(std::move(options)),
      slot_bytes_(SlotBytes(options_, pool_.layouts)),
      spaces_(spaces),
      copy_spaces_(CopySpaces(spaces, pool_.layouts.size())),
      pause_(options_.pause_min),
      shared_(std::make_shared<Shared>()) {
  CHECK(!options_.forms.empty() && options_.forms.size() <= 8);
  for (const Form& form : options_.forms) {
    CHECK(IsLossless(form.codec) == (form.loss == LossClass::kExact));
  }
  const std::size_t slots = staging_.memory.size() / slot_bytes_;
  for (std::size_t i = slots; i > 0; --i) shared_->free.push_back(static_cast<Slot>(i - 1));
  slot_turns_.resize(slots);
}

Keeper::~Keeper() {
  loop_.CancelTimer(retry_);
  std::unique_lock lock(shared_->mutex);
  shared_->changed.wait(lock, [this] { return shared_->encoding == 0; });
}

Keeper::Stats Keeper::stats() const {
  Stats stats = stats_;
  const std::lock_guard lock(shared_->mutex);
  stats.demotions_dropped = shared_->demotions_dropped;
  return stats;
}

bool Keeper::idle() const {
  return queue_.empty() && wanted_.empty() && !asking_ && holding_ == 0 && offered_ == 0;
}

// ---- The way to the node.

void Keeper::SetStore(std::optional<StoreAddress> store) {
  if (store == store_) return;
  store_ = std::move(store);
  link_ = nullptr;  // What is under way there ends by itself.
  pause_ = options_.pause_min;
  Connect();
}

void Keeper::Connect() {
  loop_.CancelTimer(retry_);
  if (!store_.has_value() || link_ != nullptr || connecting_) return;
  connecting_ = true;
  links_.Get(*store_,
             [this, watch = life_.watch(), store = *store_](absl::StatusOr<StoreLink*> link) {
               if (!watch.over()) OnLink(store, std::move(link));
             });
}

void Keeper::OnLink(const StoreAddress& store, absl::StatusOr<StoreLink*> link) {
  connecting_ = false;
  if (store_ != store) return Connect();  // It is another meanwhile.
  if (!link.ok()) {
    LOG_WARNING("store node not reached",
                {{"store", store.peer.name}, {"reason", link.status().ToString()}});
    return Lost();
  }
  link_ = *link;
  pause_ = options_.pause_min;
  // Hears of nothing but its end.
  link_->Expect([this, watch = life_.watch(), store](const absl::StatusOr<StoreMessage>&) {
    if (watch.over() || store_ != store) return;
    link_ = nullptr;
    Lost();
  });
  Pump();
}

void Keeper::Lost() {
  retry_ = loop_.At(loop_.Now() + pause_, [this] { Connect(); });
  pause_ = std::min(pause_ * 2, options_.pause_max);
}

// ---- From sealed to taken.

std::vector<Keeper::Block> Keeper::CopiesOf(const Block& block) const {
  std::vector<Block> copies;
  if (std::ranges::find(spaces_.of, block.key.space) == spaces_.of.end()) return copies;
  for (std::size_t i = 0; i < options_.forms.size(); ++i) {
    Block copy = block;
    copy.form = static_cast<std::uint8_t>(i);
    // Of a block with a loss, a lossless copy and one of no more loss have the same name.
    if (std::ranges::none_of(copies,
                             [&](const Block& other) { return LossOf(other) == LossOf(copy); })) {
      copies.push_back(std::move(copy));
    }
  }
  return copies;
}

LossClass Keeper::LossOf(const Block& copy) const {
  const auto space = std::ranges::find(spaces_.of, copy.key.space) - spaces_.of.begin();
  return std::max(static_cast<LossClass>(space), options_.forms[copy.form].loss);
}

BlockKey Keeper::CopyKey(const Block& copy) const {
  return {
      copy_spaces_[static_cast<std::size_t>(copy.group)][static_cast<std::size_t>(LossOf(copy))],
      copy.key.chain};
}

void Keeper::Sealed(std::vector<Block> blocks) {
  if (!options_.at_seal) return;
  for (const Block& block : blocks) {
    for (Block& copy : CopiesOf(block)) {
      ++stats_.sealed;
      if (shared_->Kept(CopyKey(copy))) continue;
      if (queue_.size() >= options_.queue_max) {
        ++stats_.dropped;
        continue;
      }
      queue_.push_back(std::move(copy));
    }
  }
  Pump();
}

void Keeper::Pump() {
  if (link_ == nullptr) return;
  if (!asking_ && !queue_.empty()) Ask();
  if (!wanted_.empty()) HoldWanted();
}

void Keeper::Ask() {
  AskMessage ask;
  ask.space = CopyKey(queue_.front()).space;
  std::vector<Block> asked;
  while (!queue_.empty() && CopyKey(queue_.front()).space == ask.space && asked.size() < kAskMax) {
    ask.chains.push_back(queue_.front().key.chain);
    asked.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  asking_ = true;
  ask.id = link_->Expect([this, watch = life_.watch(),
                          asked = std::move(asked)](const absl::StatusOr<StoreMessage>& answer) {
    if (!watch.over()) OnWant(asked, answer);
  });
  link_->Send(ask).IgnoreError();  // A channel that is full is a channel that ends.
}

void Keeper::OnWant(const std::vector<Block>& asked, const absl::StatusOr<StoreMessage>& answer) {
  asking_ = false;
  const auto* const want = answer.ok() ? std::get_if<WantMessage>(&*answer) : nullptr;
  if (want == nullptr || want->wanted.size() != asked.size()) {
    stats_.dropped += asked.size();
    return Pump();
  }
  if (link_ != nullptr) link_->Forget(want->id);
  for (std::size_t i = 0; i < asked.size(); ++i) {
    if (!want->wanted[i]) continue;
    ++stats_.wanted;
    wanted_.push_back(asked[i]);
  }
  Pump();
}

// As many as there are slots.
void Keeper::HoldWanted() {
  std::vector<Block> blocks;
  std::size_t slots = 0;
  {
    const std::lock_guard lock(shared_->mutex);
    slots = shared_->free.size();
  }
  // One is left for what leaves the pool.
  slots = slots > holding_ + 1 ? slots - holding_ - 1 : 0;
  while (!wanted_.empty() && blocks.size() < slots) {
    blocks.push_back(std::move(wanted_.front()));
    Block& block = blocks.back();
    block.codec = CodecFor(block);
    // What is measured must be there as it is.
    block.measure = options_.choose && IsLossless(block.codec) && !block.by_host &&
                    encodes_++ % kMeasureEvery == 0;
    const bool whole = block.measure || block.by_host;
    block.encoding = whole ? std::nullopt : EncodingOf(block.codec);
    wanted_.pop_front();
  }
  if (blocks.empty()) return;
  holding_ += blocks.size();
  pool_.hold(blocks, [this, watch = life_.watch(), blocks](std::vector<Held> held) {
    if (!watch.over()) Encode(blocks, std::move(held));
  });
}

void Keeper::Encode(std::vector<Block> blocks, std::vector<Held> held) {
  CHECK_EQ(blocks.size(), held.size());
  holding_ -= blocks.size();
  std::vector<Block> let_go;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (held[i].slab == nullptr && held[i].encoded == nullptr) {
      if (blocks[i].measure) --encodes_;  // The next one is measured instead.
      ++stats_.dropped;
      continue;
    }
    const std::optional<Slot> slot = shared_->TakeSlot();
    if (!slot.has_value()) {
      // Taken meanwhile by what leaves the pool: its turn comes again.
      wanted_.push_front(blocks[i]);
      if (blocks[i].measure) --encodes_;
      if (held[i].slab != nullptr) let_go.push_back(blocks[i]);
      continue;
    }
    {
      const std::lock_guard lock(shared_->mutex);
      ++shared_->encoding;
    }
    ++offered_;
    const bool measure = blocks[i].measure && held[i].slab != nullptr;
    auto task = [this, shared = shared_, watch = life_.watch(), slot = *slot, block = blocks[i],
                 held = held[i], measure] {
      CodecScratch scratch;
      if (measure) {
        const MonoTime begun = SteadyClock().Now();
        loop_.Post([this, watch, begun,
                    samples = CodecChoice::Measure(
                        pool_.layouts[static_cast<std::size_t>(block.group)], held.slab)] {
          if (!watch.over()) OnMeasured(samples, begun);
        });
      }
      const Encoded encoded = EncodeInto(slot, block, held, scratch);
      loop_.Post([this, watch, encoded] {
        if (!watch.over()) OnEncoded(encoded);
      });
      const std::lock_guard lock(shared->mutex);
      if (--shared->encoding == 0) shared->changed.notify_all();
    };
    if (!tasks_.Post(0, task)) task();
  }
  if (!let_go.empty()) pool_.release(std::move(let_go));
}

Keeper::Encoded Keeper::EncodeInto(Slot slot, const Block& block, const Held& held,
                                   CodecScratch& scratch) const {
  const MonoTime begun = SteadyClock().Now();
  const PageLayout& layout = pool_.layouts[static_cast<std::size_t>(block.group)];
  const LossClass loss = LossOf(block);
  const FrameMeta meta = {.key = {spaces_[loss], block.key.chain},
                          .loss = loss,
                          .group = block.group,
                          .first_position = block.index * layout.block_tokens};
  std::optional<Secret> secret;
  if (!options_.secret.empty()) secret = Secret(options_.secret);
  const CodecId codec = block.codec;
  const bool by_device = held.encoded != nullptr;
  const std::span<std::byte> out = staging_.memory.subspan(slot * slot_bytes_, slot_bytes_);
  const absl::StatusOr<std::size_t> bytes =
      by_device
          ? FrameEncoded(CodecOf(codec), meta, layout, held.encoded.get(), secret, scratch, out)
          : EncodeFrame(CodecOf(codec), meta, layout, held.slab, secret, scratch, out);
  return {.block = block,
          .slot = slot,
          .bytes = bytes.value_or(0),
          .codec = codec,
          .by_device = by_device,
          .needs_slab = absl::IsResourceExhausted(bytes.status()),
          .begun = begun,
          .took = SteadyClock().Now() - begun};
}

void Keeper::OnEncoded(const Encoded& encoded) {
  if (encoded.needs_slab) {
    wanted_.push_front(encoded.block);
    wanted_.front().by_host = true;
    return FreeSlot(encoded.slot);
  }
  if (encoded.by_device) {
    ++stats_.encoded_by_device;
  } else {
    pool_.release({encoded.block});
  }
  Offer(encoded);
}

void Keeper::Offer(const Encoded& encoded) {
  stats_.encode_seconds += ToSeconds(encoded.took);
  TraceEncode(encoded);
  const auto drop = [this, slot = encoded.slot] {
    ++stats_.dropped;
    FreeSlot(slot);
  };
  if (link_ == nullptr || link_->channel() == nullptr || encoded.bytes == 0) return drop();
  transfer::LinkTurns::Turn& turn = slot_turns_[encoded.slot];
  turn = turns_.Ask(link_->channel()->link_out(), transfer::MoveClass::kWriteBack, encoded.bytes,
                    loop_.Now() + options_.turn_within,
                    [this, drop, encoded](const absl::Status& status) {
                      if (!status.ok() || link_ == nullptr) return drop();
                      Send(encoded);
                    });
  if (turn.begun()) Send(encoded);
}

void Keeper::Send(const Encoded& encoded) {
  const std::span<const std::byte> frame =
      staging_.memory.subspan(encoded.slot * slot_bytes_, slot_bytes_);
  const absl::StatusOr<std::size_t> header_bytes = FrameHeaderBytesOf(frame);
  CHECK(header_bytes.ok());
  OfferMessage offer = {
      .key = CopyKey(encoded.block),
      .parent = encoded.block.parent,
      .tenant = encoded.block.tenant,
      .tokens_before = static_cast<std::uint32_t>(encoded.block.index) *
                       static_cast<std::uint32_t>(pool_.layouts[0].block_tokens),
      .segment = staging_.segment,
      .offset = encoded.slot * slot_bytes_ + FramePayloadAt(*header_bytes),
      .header = {frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(*header_bytes)}};
  offer.id = link_->Expect([this, watch = life_.watch(), encoded,
                            link = link_](const absl::StatusOr<StoreMessage>& answer) {
    if (watch.over()) return;
    const auto* const taken = answer.ok() ? std::get_if<TakenMessage>(&*answer) : nullptr;
    if (taken != nullptr) link->Forget(taken->id);
    if (taken != nullptr && taken->status.ok()) {
      ++stats_.taken;
      stats_.bytes_taken += encoded.bytes;
      const std::lock_guard lock(shared_->mutex);
      if (shared_->kept.insert(CopyKey(encoded.block)).second) {
        shared_->kept_order.push_back(CopyKey(encoded.block));
      }
      if (shared_->kept_order.size() > options_.kept_max) {
        shared_->kept.erase(shared_->kept_order.front());
        shared_->kept_order.pop_front();
      }
    } else {
      ++stats_.refused;
    }
    FreeSlot(encoded.slot);
  });
  link_->Send(offer).IgnoreError();
}

void Keeper::TraceEncode(const Encoded& encoded) const {
  if (options_.spans == nullptr || encoded.bytes == 0) return;
  const transfer::Channel* const channel = link_ == nullptr ? nullptr : link_->channel();
  options_.spans->Record(
      {.name = SpanName::kEncode,
       .begin = encoded.begun,
       .end = encoded.begun + encoded.took,
       .bytes = encoded.bytes,
       .blocks = 1,
       .group = static_cast<std::int16_t>(encoded.block.group),
       .peer = store_.has_value() ? std::string_view(store_->peer.name) : "",
       .transport = channel == nullptr ? "" : transfer::ToString(channel->kind()),
       .text = ToString(encoded.codec)});
}

// ---- Which codec.

CodecId Keeper::CodecFor(const Block& copy) const {
  const CodecId codec = options_.forms[copy.form].codec;
  return options_.choose && IsLossless(codec) ? shared_->chosen.load() : codec;
}

void Keeper::Came(Tier tier, transfer::Kind kind, std::size_t bytes, Duration took) {
  choice_.Came(tier, kind, bytes, took);
  shared_->chosen = choice_.chosen();
}

void Keeper::OnMeasured(const std::vector<CodecChoice::Sample>& samples, MonoTime begun) {
  for (const CodecChoice::Sample& sample : samples) choice_.Measured(sample);
  shared_->chosen = choice_.chosen();
  Trace(options_.spans, {.name = SpanName::kChooseCodec,
                         .begin = begun,
                         .end = SteadyClock().Now(),
                         .blocks = 1,
                         .text = choice_.Describe()});
}

void Keeper::FreeSlot(Slot slot) {
  slot_turns_[slot].End();
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->free.push_back(slot);
  }
  --offered_;
  Pump();
}

// ---- What leaves the pool.

void Keeper::Leaving(
    const Block& block, absl::FunctionRef<const std::byte*()> slab,
    absl::FunctionRef<std::shared_ptr<const std::byte[]>(const kernels::KvEncoding&)> encoded_by) {
  const std::byte* bytes = nullptr;
  for (Block& copy : CopiesOf(block)) {
    if (shared_->Kept(CopyKey(copy))) continue;
    copy.codec = CodecFor(copy);
    const std::optional<Slot> slot = shared_->TakeSlot();
    if (!slot.has_value()) {
      const std::lock_guard lock(shared_->mutex);
      ++shared_->demotions_dropped;
      continue;
    }
    Held held;
    if (const auto encoding = EncodingOf(copy.codec)) held.encoded = encoded_by(*encoding);
    if (held.encoded == nullptr) held.slab = bytes = bytes != nullptr ? bytes : slab();
    Encoded encoded = EncodeInto(*slot, copy, held, shared_->demote);
    if (encoded.needs_slab) {
      bytes = bytes != nullptr ? bytes : slab();
      encoded = EncodeInto(*slot, copy, {.slab = bytes, .encoded = nullptr}, shared_->demote);
    }
    loop_.Post([this, watch = life_.watch(), encoded] {
      if (!watch.over()) OnDemoted(encoded);
    });
  }
}

void Keeper::OnDemoted(const Encoded& encoded) {
  ++offered_;
  stats_.encoded_by_device += encoded.by_device ? 1 : 0;
  if (link_ == nullptr) return Offer(encoded);  // Which drops it.
  const BlockKey key = CopyKey(encoded.block);
  const std::uint64_t id = link_->Expect([this, watch = life_.watch(), encoded, link = link_](
                                             const absl::StatusOr<StoreMessage>& answer) {
    if (watch.over()) return;
    const auto* const want = answer.ok() ? std::get_if<WantMessage>(&*answer) : nullptr;
    if (want != nullptr) link->Forget(want->id);
    if (want == nullptr || want->wanted.size() != 1 || !want->wanted[0]) {
      return FreeSlot(encoded.slot);
    }
    ++stats_.demoted;
    Offer(encoded);
  });
  link_->Send(AskMessage{.id = id, .space = key.space, .chains = {key.chain}}).IgnoreError();
}

}  // namespace penstock::kvstore
