// SPDX-License-Identifier: Apache-2.0
#include "kvstore/client/mapped_blocks.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <utility>
#include <variant>

#include "kvstore/host/host_tier.h"

namespace penstock::kvstore {
namespace {

struct Name {
  std::uint64_t link = 0;
  std::uint64_t find = 0;
  std::uint32_t index = 0;
  std::size_t bytes = 0;
};

}  // namespace

// Copies that are gone, on their way from whatever thread to the loop.
struct MappedBlocks::Returns {
  std::mutex mutex;            // Guards all below.
  std::function<void()> wake;  // Null once nobody is there to hear.
  std::vector<Name> gone;
};

class MappedBlocks::Copy final : public MappedBlock {
 public:
  Copy(transfer::MappedMemory memory, const FoundMessage& found, const Name& name,
       std::shared_ptr<Returns> returns)
      : memory_(std::move(memory)),
        offset_(static_cast<std::size_t>(found.offset)),
        place_{.offset = found.offset,
               .generation_offset = found.generation_offset,
               .generation = found.generation},
        name_(name),
        returns_(std::move(returns)) {}
  ~Copy() override {
    const std::lock_guard lock(returns_->mutex);
    if (returns_->wake == nullptr) return;
    returns_->gone.push_back(name_);
    if (returns_->gone.size() == 1) returns_->wake();
  }

  std::span<const std::byte> memory() const override { return memory_.bytes; }
  std::size_t offset() const override { return offset_; }
  bool Changed() const override {
    return !GenerationIs(memory_.bytes, place_) || lost_.load(std::memory_order_relaxed);
  }
  // False: it was already.
  bool SetLost() { return !lost_.exchange(true, std::memory_order_relaxed); }

 private:
  const transfer::MappedMemory memory_;
  const std::size_t offset_;
  const HostTier::Place place_;
  const Name name_;
  const std::shared_ptr<Returns> returns_;
  std::atomic<bool> lost_ = false;
};

MappedBlocks::MappedBlocks(Loop& loop, Options options)
    : loop_(loop), options_(options), returns_(std::make_shared<Returns>()) {
  returns_->wake = [this, watch = life_.watch()] {
    loop_.Post([this, watch] {
      if (!watch.over()) TakeReturns();
    });
  };
}

MappedBlocks::~MappedBlocks() {
  {
    const std::lock_guard lock(returns_->mutex);
    returns_->wake = nullptr;
  }
  if (timer_.has_value()) loop_.CancelTimer(*timer_);
  while (!links_.empty()) EndLink(*links_.begin()->first);
}

bool MappedBlocks::Take(StoreLink& link, const FoundMessage& found) {
  transfer::Channel* const channel = link.channel();
  if (!found.may_keep || found.lease_ms == 0 || channel == nullptr || !channel->maps() ||
      found.offset % MappedBlock::kPageBytes != 0) {
    return false;
  }
  const auto [it, added] = links_.try_emplace(&link);
  Held& held = it->second;
  if (added) held.number = next_link_++;
  held.lease = std::chrono::milliseconds(found.lease_ms);
  ++held.copies;
  return true;
}

void MappedBlocks::GiveBack(StoreLink& link) {
  const auto it = links_.find(&link);
  if (it == links_.end()) return;
  // Whom nobody listens for may end unheard.
  if (--it->second.copies == 0) links_.erase(it);
}

std::shared_ptr<const MappedBlock> MappedBlocks::Make(StoreLink& link, const FoundMessage& found,
                                                      std::size_t bytes) {
  const auto it = links_.find(&link);
  if (it == links_.end() || link.channel() == nullptr) return nullptr;
  transfer::MappedMemory memory = link.channel()->Mapped(found.segment);
  const std::size_t size = memory.bytes.size();
  if (memory.owner == nullptr || found.offset > size || bytes > size - found.offset) {
    GiveBack(link);
    return nullptr;
  }
  // From here on its end gives back.
  const auto copy = std::make_shared<Copy>(
      std::move(memory), found, Name{it->second.number, found.id, found.index, bytes}, returns_);
  ++stats_.copies;
  stats_.bytes += bytes;
  it->second.finds[found.id].copies[found.index] = copy;
  RenewLater();
  if (copy->Changed()) return nullptr;
  return copy;
}

void MappedBlocks::OnAnswer(StoreLink& link, std::uint64_t find,
                            const absl::StatusOr<StoreMessage>& answer) {
  if (!answer.ok()) return EndLink(link);
  const auto* const lost = std::get_if<LostMessage>(&*answer);
  const auto held = links_.find(&link);
  if (lost == nullptr || held == links_.end()) return;
  const auto of = held->second.finds.find(find);
  if (of == held->second.finds.end()) return;
  const auto copy = of->second.copies.find(lost->index);
  if (copy == of->second.copies.end()) return;
  if (const std::shared_ptr<Copy> live = copy->second.lock()) Lose(*live);
}

void MappedBlocks::TakeOver(StoreLink& link, std::uint64_t find) {
  const auto held = links_.find(&link);
  if (held == links_.end()) return link.Forget(find);
  const auto of = held->second.finds.find(find);
  if (of == held->second.finds.end()) return link.Forget(find);
  of->second.listening = true;
  link.Listen(
      find, [this, &link, find, watch = life_.watch()](const absl::StatusOr<StoreMessage>& answer) {
        if (!watch.over()) OnAnswer(link, find, answer);
      });
}

void MappedBlocks::EndLink(StoreLink& link) {
  const auto it = links_.find(&link);
  if (it == links_.end()) return;
  const Held held = std::move(it->second);
  links_.erase(it);
  for (const auto& [id, find] : held.finds) {
    for (const auto& [index, copy] : find.copies) {
      if (const std::shared_ptr<Copy> live = copy.lock()) Lose(*live);
    }
  }
}

void MappedBlocks::Lose(Copy& copy) {
  if (copy.SetLost()) ++stats_.lost;
}

void MappedBlocks::TakeReturns() {
  std::vector<Name> gone;
  {
    const std::lock_guard lock(returns_->mutex);
    gone = std::exchange(returns_->gone, {});
  }
  std::map<std::pair<StoreLink*, std::uint64_t>, DropMessage> drops;
  for (const Name& name : gone) {
    --stats_.copies;
    stats_.bytes -= name.bytes;
    const auto it = std::ranges::find_if(
        links_, [&](const auto& entry) { return entry.second.number == name.link; });
    if (it == links_.end()) continue;  // The link ended before.
    StoreLink& link = *it->first;
    const auto find = it->second.finds.find(name.find);
    find->second.copies.erase(name.index);
    DropMessage& drop = drops[{&link, name.find}];
    drop.id = name.find;
    drop.indices.push_back(name.index);
    if (find->second.copies.empty()) {
      if (find->second.listening) link.Forget(name.find);
      it->second.finds.erase(find);
    }
    GiveBack(link);
  }
  // A node that does not hear of it lets go when the leases end.
  for (const auto& [of, drop] : drops) of.first->Send(drop).IgnoreError();
}

// In time for the shortest lease.
void MappedBlocks::RenewLater() {
  Duration lease = Duration::max();
  for (const auto& [link, held] : links_) {
    if (!held.finds.empty()) lease = std::min(lease, held.lease);
  }
  const std::chrono::duration<double> wait(options_.renew_at * ToSeconds(lease));
  const MonoTime at = loop_.Now() + std::chrono::duration_cast<Duration>(wait);
  if (timer_.has_value() && renew_ <= at) return;
  if (timer_.has_value()) loop_.CancelTimer(*timer_);
  renew_ = at;
  timer_ = loop_.At(at, [this] {
    timer_.reset();
    Renew();
  });
}

void MappedBlocks::Renew() {
  std::vector<StoreLink*> broken;
  bool more = false;
  for (const auto& [link, held] : links_) {
    if (held.finds.empty()) continue;
    more = true;
    if (!link->Send(RenewMessage{0}).ok()) broken.push_back(link);
  }
  for (StoreLink* const link : broken) EndLink(*link);
  if (more) RenewLater();
}

}  // namespace penstock::kvstore
