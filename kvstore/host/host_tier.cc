// SPDX-License-Identifier: Apache-2.0
#include "kvstore/host/host_tier.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "kvstore/eviction.h"
#include "kvstore/host/extents.h"

namespace penstock::kvstore {
namespace {

constexpr std::uint64_t kPage = HostTier::kPageBytes;
constexpr std::uint64_t kGenerationBytes = sizeof(std::uint64_t);
using Generation = std::atomic_ref<std::uint64_t>;
static_assert(Generation::is_always_lock_free);  // Else it would not do across processes.

std::uint64_t PagesUp(std::uint64_t bytes) { return (bytes + kPage - 1) / kPage; }

// How many pages of room there are in `bytes`, beside their generations.
std::uint64_t PagesOfRoom(std::uint64_t bytes) {
  std::uint64_t pages = bytes / (kPage + kGenerationBytes);
  while (pages > 0 && (PagesUp(pages * kGenerationBytes) + pages) * kPage > bytes) --pages;
  return pages;
}

std::uint64_t* GenerationAt(std::byte* memory, std::uint64_t offset) {
  return reinterpret_cast<std::uint64_t*>(memory + offset);
}

}  // namespace

struct HostTier::Impl {
  enum class State : std::uint8_t { kReserved, kHeld, kLeaving };
  struct Entry {
    Copy copy;
    State state = State::kReserved;
    bool pinned = false;
    bool named = false;  // By Evict: the policy knows it no more.
    std::uint32_t holds = 0;
    std::uint32_t leases = 0;
    bool promised() const { return holds + leases > 0; }
    bool kept() const { return pinned || promised(); }
    std::uint64_t pages() const { return PagesUp(copy.bytes); }
  };
  using Page = std::uint64_t;  // Its first, of the room: what a copy is known by while it has room.

  Impl(std::span<std::byte> whole, const Options& options, std::uint64_t room,
       std::unique_ptr<EvictionPolicy> chosen)
      : memory(whole),
        room_pages(room),
        room_offset(PagesUp(room * kGenerationBytes) * kPage),
        extents(room),
        leases(options.lease, options.leases_max),
        policy(std::move(chosen)) {}

  // Every call that is told the time begins so.
  MonoTime Forward(MonoTime at) {
    now = std::max(now, at);
    while (const std::optional<Page> page = leases.PopEnded(now)) LetGoOfLease(*page);
    return now;
  }

  std::uint64_t GenerationOffset(Page page) const { return page * kGenerationBytes; }
  Generation GenerationOf(Page page) {
    return Generation(*GenerationAt(memory.data(), GenerationOffset(page)));
  }
  Place PlaceOf(Page page) {
    return {.offset = room_offset + page * kPage,
            .generation_offset = GenerationOffset(page),
            .generation = GenerationOf(page).load(std::memory_order_relaxed)};
  }
  Page PageAt(std::uint64_t offset) const {
    CHECK(offset >= room_offset && offset % kPage == 0);
    return (offset - room_offset) / kPage;
  }

  Entry& EntryOf(Page page) {
    const auto found = entries.find(page);
    CHECK(found != entries.end());
    return found->second;
  }
  std::optional<Page> FindIn(State state, const BlockKey& key) const {
    const auto found = pages.find(key);
    if (found == pages.end() || entries.at(found->second).state != state) return std::nullopt;
    return found->second;
  }
  Page PageIn(State state, const BlockKey& key) const {
    const std::optional<Page> page = FindIn(state, key);
    CHECK(page.has_value());
    return *page;
  }

  // Around every change of what keeps a copy: the policy knows whether something does, not what.
  template <typename Change>
  void ChangeKept(Entry& entry, Change change) {
    const bool before = entry.kept();
    change();
    const bool after = entry.kept();
    if (before == after || entry.state != State::kHeld) return;
    if (after) {
      bytes_kept += entry.pages() * kPage;
      policy->Pin(entry.copy.key);
    } else {
      bytes_kept -= entry.pages() * kPage;
      policy->Unpin(entry.copy.key, now);
    }
  }
  void LetGoOfLease(Page page) {
    Entry& entry = EntryOf(page);
    CHECK(entry.leases > 0);
    ChangeKept(entry, [&] { --entry.leases; });
    FreeIfDone(page);
  }
  void FreeIfDone(Page page) {
    const Entry& entry = EntryOf(page);
    if (entry.state != State::kLeaving || entry.promised()) return;
    --leaving;
    Free(page);
  }
  void Free(Page page) {
    const auto found = entries.find(page);
    GenerationOf(page).store(++generations, std::memory_order_relaxed);
    // Whoever sees bytes that are written to this room from here on sees the new generation too.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    extents.Give(page, found->second.pages());
    entries.erase(found);
  }

  const std::span<std::byte> memory;
  const std::uint64_t room_pages;
  const std::uint64_t room_offset;
  MonoTime now = MonoTime::min();
  std::uint64_t generations = 0;  // Ever used.
  Extents extents;
  Leases leases;
  std::unique_ptr<EvictionPolicy> policy;     // Held copies that were not named.
  absl::flat_hash_map<Page, Entry> entries;   // All that have room.
  absl::flat_hash_map<BlockKey, Page> pages;  // Reserved and held ones.
  std::size_t held = 0;
  std::size_t leaving = 0;
  std::uint64_t bytes_kept = 0;
  std::uint64_t evicted = 0;
};

absl::StatusOr<std::unique_ptr<HostTier>> HostTier::Make(std::span<std::byte> memory,
                                                         const Options& options) {
  CHECK(reinterpret_cast<std::uintptr_t>(memory.data()) % kPage == 0);
  const std::uint64_t pages = PagesOfRoom(memory.size());
  if (pages == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the host tier needs ", 2 * kPage, " bytes of memory at least, got ", memory.size()));
  }
  if (options.lease <= Duration::zero()) {
    return absl::InvalidArgumentError(
        absl::StrCat("lease must be above 0, got ", options.lease.count(), " ns"));
  }
  ASSIGN_OR_RETURN(
      std::unique_ptr<EvictionPolicy> policy,
      MakeEvictionPolicy(options.policy, {.capacity_bytes = pages * kPage,
                                          .block_tokens = options.block_tokens,
                                          .attention_tokens = options.attention_tokens}));
  return std::unique_ptr<HostTier>(
      new HostTier(std::make_unique<Impl>(memory, options, pages, std::move(policy))));
}

HostTier::HostTier(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HostTier::~HostTier() = default;

absl::StatusOr<HostTier::Place> HostTier::Reserve(const Copy& copy, MonoTime now) {
  impl_->Forward(now);
  const std::uint64_t room_bytes = impl_->room_pages * kPage;
  if (copy.bytes == 0 || copy.bytes > room_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("a copy must have from 1 to ", room_bytes,
                                                   " bytes, all room, got ", copy.bytes));
  }
  if (const auto found = impl_->pages.find(copy.key); found != impl_->pages.end()) {
    const bool reserved = impl_->entries.at(found->second).state == Impl::State::kReserved;
    return absl::AlreadyExistsError(reserved ? "somebody is putting this copy"
                                             : "this copy is held");
  }
  const std::optional<Impl::Page> page = impl_->extents.Take(PagesUp(copy.bytes));
  if (!page) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a copy of ", copy.bytes, " bytes needs room in one piece, of which there are ",
        impl_->extents.longest() * kPage));
  }
  // Else it has the one that it got when it was freed, which nobody was told of yet.
  if (Generation generation = impl_->GenerationOf(*page); generation.load() == 0) {
    generation.store(++impl_->generations);
  }
  impl_->pages.emplace(copy.key, *page);
  impl_->entries.emplace(*page, Impl::Entry{.copy = copy});
  return impl_->PlaceOf(*page);
}

void HostTier::Amend(const BlockKey& key, std::uint32_t tokens_before, std::uint8_t codec) {
  Copy& copy = impl_->EntryOf(impl_->PageIn(Impl::State::kReserved, key)).copy;
  copy.tokens_before = tokens_before;
  copy.codec = codec;
}

void HostTier::Publish(const BlockKey& key, MonoTime now) {
  now = impl_->Forward(now);
  Impl::Entry& entry = impl_->EntryOf(impl_->PageIn(Impl::State::kReserved, key));
  entry.state = Impl::State::kHeld;
  ++impl_->held;
  impl_->policy->Put({.key = key,
                      .parent = entry.copy.parent,
                      .bytes = entry.pages() * kPage,
                      .tenant = entry.copy.tenant,
                      .tokens_before = entry.copy.tokens_before},
                     now);
}

void HostTier::Cancel(const BlockKey& key) {
  const Impl::Page page = impl_->PageIn(Impl::State::kReserved, key);
  impl_->pages.erase(key);
  impl_->Free(page);
}

void HostTier::Ask(std::span<const BlockKey> chain, MonoTime now) {
  impl_->policy->Ask({.chain = chain}, impl_->Forward(now));
}

std::optional<HostTier::Found> HostTier::Find(const BlockKey& key, MonoTime now) {
  now = impl_->Forward(now);
  const std::optional<Impl::Page> page = impl_->FindIn(Impl::State::kHeld, key);
  if (!page) return std::nullopt;
  impl_->policy->Use(key, now);
  return Found{.copy = impl_->EntryOf(*page).copy, .place = impl_->PlaceOf(*page)};
}

const HostTier::Copy* HostTier::Peek(const BlockKey& key) const {
  const std::optional<Impl::Page> page = impl_->FindIn(Impl::State::kHeld, key);
  return page ? &impl_->EntryOf(*page).copy : nullptr;
}

std::optional<HostTier::Place> HostTier::PlaceOf(const BlockKey& key) const {
  const std::optional<Impl::Page> page = impl_->FindIn(Impl::State::kHeld, key);
  if (!page) return std::nullopt;
  return impl_->PlaceOf(*page);
}

std::span<std::byte> HostTier::Bytes(const Place& place, std::uint32_t bytes) {
  CHECK(place.offset >= impl_->room_offset && place.offset <= impl_->memory.size());
  CHECK(bytes <= impl_->memory.size() - place.offset);
  return impl_->memory.subspan(place.offset, bytes);
}

HostTier::Hold HostTier::HoldCopy(const BlockKey& key) {
  const Impl::Page page = impl_->PageIn(Impl::State::kHeld, key);
  Impl::Entry& entry = impl_->EntryOf(page);
  impl_->ChangeKept(entry, [&] { ++entry.holds; });
  return {.offset = impl_->PlaceOf(page).offset};
}

void HostTier::DropHold(Hold hold, MonoTime now) {
  impl_->Forward(now);
  const Impl::Page page = impl_->PageAt(hold.offset);
  Impl::Entry& entry = impl_->EntryOf(page);
  CHECK(entry.holds > 0);
  impl_->ChangeKept(entry, [&] { --entry.holds; });
  impl_->FreeIfDone(page);
}

absl::StatusOr<LeaseId> HostTier::Lease(const BlockKey& key, MonoTime now) {
  now = impl_->Forward(now);
  const Impl::Page page = impl_->PageIn(Impl::State::kHeld, key);
  ASSIGN_OR_RETURN(const LeaseId lease, impl_->leases.Grant(page, now));
  Impl::Entry& entry = impl_->EntryOf(page);
  impl_->ChangeKept(entry, [&] { ++entry.leases; });
  return lease;
}

absl::Status HostTier::Renew(LeaseId lease, MonoTime now) {
  return impl_->leases.Renew(lease, impl_->Forward(now));
}

void HostTier::EndLease(LeaseId lease, MonoTime now) {
  impl_->Forward(now);
  if (const auto page = impl_->leases.End(lease)) impl_->LetGoOfLease(*page);
}

void HostTier::Expire(MonoTime now) { impl_->Forward(now); }

MonoTime HostTier::NextExpiry() const { return impl_->leases.next(); }

Duration HostTier::lease() const { return impl_->leases.lease(); }

std::vector<HostTier::Copy> HostTier::Evict(std::uint64_t bytes, MonoTime now) {
  now = impl_->Forward(now);
  std::vector<BlockKey> victims;
  impl_->policy->Evict(bytes, now, victims);
  std::vector<Copy> copies;
  copies.reserve(victims.size());
  for (const BlockKey& key : victims) {
    Impl::Entry& entry = impl_->EntryOf(impl_->PageIn(Impl::State::kHeld, key));
    entry.named = true;
    copies.push_back(entry.copy);
  }
  impl_->evicted += victims.size();
  return copies;
}

void HostTier::Remove(const BlockKey& key, MonoTime now) {
  now = impl_->Forward(now);
  const Impl::Page page = impl_->PageIn(Impl::State::kHeld, key);
  Impl::Entry& entry = impl_->EntryOf(page);
  impl_->policy->Remove(key, now);
  impl_->pages.erase(key);
  if (entry.kept()) impl_->bytes_kept -= entry.pages() * kPage;
  --impl_->held;
  entry.state = Impl::State::kLeaving;
  entry.pinned = false;
  ++impl_->leaving;
  impl_->FreeIfDone(page);
}

bool HostTier::Pin(const BlockKey& key) {
  const std::optional<Impl::Page> page = impl_->FindIn(Impl::State::kHeld, key);
  if (!page || impl_->EntryOf(*page).named) return false;
  Impl::Entry& entry = impl_->EntryOf(*page);
  impl_->ChangeKept(entry, [&] { entry.pinned = true; });
  return true;
}

bool HostTier::Unpin(const BlockKey& key, MonoTime now) {
  impl_->Forward(now);
  const std::optional<Impl::Page> page = impl_->FindIn(Impl::State::kHeld, key);
  if (!page || impl_->EntryOf(*page).named) return false;
  Impl::Entry& entry = impl_->EntryOf(*page);
  impl_->ChangeKept(entry, [&] { entry.pinned = false; });
  return true;
}

void HostTier::SetQuota(std::uint32_t tenant, std::optional<std::uint64_t> bytes) {
  impl_->policy->SetQuota(tenant, bytes);
}

std::uint64_t HostTier::tenant_bytes(std::uint32_t tenant) const {
  return impl_->policy->tenant_bytes(tenant);
}

std::vector<HostTier::Copy> HostTier::List() const {
  std::vector<Copy> copies;
  copies.reserve(impl_->held);
  for (const auto& [page, entry] : impl_->entries) {
    if (entry.state == Impl::State::kHeld) copies.push_back(entry.copy);
  }
  std::ranges::sort(copies, {}, &Copy::key);
  return copies;
}

HostTier::Stats HostTier::stats() const {
  return {.copies = impl_->held,
          .bytes = (impl_->room_pages - impl_->extents.free()) * kPage,
          .bytes_max = impl_->room_pages * kPage,
          .bytes_pinned = impl_->bytes_kept,
          .leases = impl_->leases.size(),
          .leaving = impl_->leaving,
          .evicted = impl_->evicted};
}

bool GenerationIs(std::span<const std::byte> memory, const HostTier::Place& place) {
  const std::uint64_t offset = place.generation_offset;
  if (memory.size() < kGenerationBytes || offset > memory.size() - kGenerationBytes ||
      offset % kGenerationBytes != 0) {
    return false;
  }
  // The reads before come first: with the fence at Free, who has read a byte of another copy here
  // finds another generation.
  std::atomic_thread_fence(std::memory_order_acquire);
  // C++20 has no reference to a constant one; this only loads.
  std::byte* const bytes = const_cast<std::byte*>(memory.data());
  return Generation(*GenerationAt(bytes, offset)).load(std::memory_order_relaxed) ==
         place.generation;
}

}  // namespace penstock::kvstore
