// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_store.h"

#include <iterator>

namespace penstock::sim {

namespace co = coordinator;
using Kind = CopyEvent::Kind;

SimStore::SimStore(World& world, const std::string& name) : SimWorker(world, name) {
  session_ = std::make_unique<Session>(
      process_, world.network, world.random, RegistrationAs(co::Role::kStore),
      Session::Events{.on_reserve = nullptr,
                      .on_start = nullptr,
                      .on_release = nullptr,
                      .on_snapshot = [this] { session_->SayCopyEvents(All()); },
                      .on_drained =
                          [this] {
                            session_->Leave();
                            left_ = true;
                          },
                      .load =
                          [this] {
                            SayLoad load;
                            load.report.tiers = {{.tier = Tier::kHost,
                                                  .bytes_max = 1 << 20,
                                                  .copies = copies_.size()}};
                            return load;
                          },
                      .on_store = nullptr,
                      .on_replicate = [this](const co::ReplicateAction& a) { Copy(a); }});
}

CopyEvent SimStore::Stored(const CopyName& name) const {
  const Kept& copy = copies_.at(name);
  return {.name = name, .tier = copy.tier, .codec = 1, .bytes = 200, .parent = copy.parent};
}

std::vector<CopyEvent> SimStore::All() const {
  std::vector<CopyEvent> events = {{.kind = Kind::kSnapshotBegin}};
  for (const auto& [name, copy] : copies_) events.push_back(Stored(name));
  events.push_back({.kind = Kind::kSnapshotEnd});
  return events;
}

void SimStore::Keep(const std::vector<Chain>& chains) {
  std::vector<CopyEvent> events;
  for (std::int32_t g = 0; g < memory_.groups(); ++g) {
    std::optional<CopyName> parent;
    for (const Chain& chain : chains) {
      const CopyName name = NameOf({SpaceOf(g), chain});
      const auto tier = static_cast<Tier>(2 + world_.random() % 3);
      if (copies_.emplace(name, Kept{tier, parent}).second) events.push_back(Stored(name));
      parent = name;
    }
  }
  while (copies_.size() > kCopiesMax || (!copies_.empty() && world_.random() % 8 == 0)) {
    const auto victim =
        std::next(copies_.begin(), static_cast<std::ptrdiff_t>(world_.random() % copies_.size()));
    events.push_back({.kind = Kind::kRemoved, .name = victim->first});
    copies_.erase(victim);
  }
  session_->SayCopyEvents(std::move(events));
}

void SimStore::Copy(const co::ReplicateAction& action) {
  std::vector<CopyEvent> events;
  std::optional<CopyName> parent;
  if (action.parent.has_value()) parent = NameOf({action.copy_space, *action.parent});
  for (const Chain& chain : action.chains) {
    const CopyName name = NameOf({action.copy_space, chain});
    if (copies_.size() >= kCopiesMax) break;
    if (copies_.emplace(name, Kept{Tier::kHost, parent}).second) events.push_back(Stored(name));
    parent = name;
  }
  if (!events.empty()) session_->SayCopyEvents(std::move(events));
}

bool SimStore::Has(const Chain& chain) const {
  return copies_.contains(NameOf({SpaceOf(0), chain}));
}

}  // namespace penstock::sim
