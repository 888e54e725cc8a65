// SPDX-License-Identifier: Apache-2.0
#include "worker/store_part.h"

#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "device/cpu_device.h"
#include "kvstore/node/store_node.h"

namespace penstock::worker {
namespace {

using engine::BlockExport;
using kvstore::Fetcher;
using kvstore::Keeper;

constexpr double kNewest = 0.2;                          // Its weight in a moving mean.
constexpr std::size_t kMeasured = std::size_t{1} << 16;  // Bytes that say something about a rate.

Keeper::Block ToKeeper(const BlockExport::Block& block) {
  return {.group = block.group,
          .key = block.sealed.key,
          .parent = block.sealed.parent,
          .index = block.sealed.index,
          .tenant = block.sealed.tenant};
}

BlockExport::Block ToExport(const Keeper::Block& block) {
  return {.group = block.group,
          .sealed = {.key = block.key,
                     .parent = block.parent,
                     .index = block.index,
                     .tenant = block.tenant},
          .encoding = block.encoding};
}

std::vector<BlockExport::Block> ToExport(const std::vector<Keeper::Block>& blocks) {
  std::vector<BlockExport::Block> all;
  for (const Keeper::Block& block : blocks) all.push_back(ToExport(block));
  return all;
}

}  // namespace

struct StorePart::Importing {
  ImportDone done;
  std::int32_t first_block = 0;
  engine::ReservationId reservation{};
  std::optional<kvstore::FetchId> fetch;
  bool cancelled = false;
  bool backwards = false;
  std::int32_t wanted = 0;  // Blocks before are not.
  std::vector<std::shared_ptr<const MappedBlock>> mapped;
  Progress progress;
};

StorePart::StorePart(EpollLoop& loop, engine::EngineThread& thread, engine::KvPool& pool,
                     const LossSpaces& spaces)
    : loop_(loop), thread_(thread), pool_(pool), spaces_(spaces) {}

absl::StatusOr<std::unique_ptr<StorePart>> StorePart::Make(
    EpollLoop& loop, transfer::LinkTurns& turns, engine::EngineThread& thread, engine::KvPool& pool,
    const LossSpaces& spaces, const Options& options) {
  std::unique_ptr<StorePart> part(new StorePart(loop, thread, pool, spaces));
  StorePart* const p = part.get();
  Keeper::Pool keeper_pool;
  for (std::int32_t g = 0; g < pool.groups(); ++g) keeper_pool.layouts.push_back(pool.layout(g));
  ASSIGN_OR_RETURN(p->staging_,
                   AllocateHostMemory(std::max<std::size_t>(1, options.staging_slots) *
                                          Keeper::SlotBytes(options.keeper, keeper_pool.layouts),
                                      Sharing::kPeers));
  transfer::Endpoint::Options endpoint = options.endpoint;
  endpoint.identity = kvstore::StoreIdentity();
  endpoint.self.name += ".store";  // Its sockets are not the worker's other endpoint's.
  // Nobody has a reason to connect here: such a channel ends as this returns.
  ASSIGN_OR_RETURN(p->endpoint_,
                   transfer::Endpoint::Make(
                       loop, std::move(endpoint), [](std::unique_ptr<transfer::Channel>) {},
                       [](const absl::Status&) {}));
  p->links_ = std::make_unique<kvstore::StoreLinks>([p](const transfer::Peer& peer,
                                                        const std::string& address,
                                                        kvstore::StoreLinks::Connected done) {
    p->endpoint_->Connect(peer, address, std::move(done));
  });
  keeper_pool.hold = [p](const std::vector<Keeper::Block>& blocks,
                         std::function<void(std::vector<Keeper::Held>)> held) {
    p->export_->Hold(ToExport(blocks),
                     [held = std::move(held)](const std::vector<BlockExport::Held>& blocks_held) {
                       std::vector<Keeper::Held> all;
                       for (const BlockExport::Held& block : blocks_held) {
                         all.push_back({block.slab, block.encoded});
                       }
                       held(std::move(all));
                     });
  };
  keeper_pool.release = [p](const std::vector<Keeper::Block>& blocks) {
    p->export_->Release(ToExport(blocks));
  };
  p->keeper_ = std::make_unique<Keeper>(
      loop, *p->links_, turns, p->tasks_, spaces, std::move(keeper_pool),
      Keeper::Staging{.segment = p->endpoint_->Register(*p->staging_),
                      .memory = {p->staging_->data(), p->staging_->size_bytes()}},
      options.keeper);
  p->fetcher_ = std::make_unique<Fetcher>(
      loop, *p->links_, turns,
      Fetcher::Options{.secret = options.keeper.secret, .mapped = options.mapped});
  p->export_ = std::make_unique<BlockExport>(
      loop, thread,
      BlockExport::Events{
          .on_sealed =
              [p](const std::vector<BlockExport::Block>& blocks) {
                std::vector<Keeper::Block> sealed;
                for (const BlockExport::Block& block : blocks) {
                  sealed.push_back(ToKeeper(block));
                }
                p->keeper_->Sealed(std::move(sealed));
              },
          .on_leaving =
              [p](const BlockExport::Block& block, const BlockExport::Leaving& leaving) {
                p->keeper_->Leaving(ToKeeper(block), leaving.slab, leaving.encoded);
              }});
  return part;
}

StorePart::~StorePart() {
  export_.reset();  // The engine's thread is not in the keeper any more.
  fetcher_.reset();
  keeper_.reset();
  links_.reset();
  endpoint_.reset();
}

void StorePart::SetStore(const kvstore::StoreAddress& store) {
  if (store.peer.name.empty()) return keeper_->SetStore(std::nullopt);
  keeper_->SetStore(store);
}

// ---- Imports.

StorePart::ImportId StorePart::Import(ImportOrder order, ImportDone done) {
  const ImportId id = next_import_++;
  imports_[id] = std::make_unique<Importing>();
  imports_[id]->done = std::move(done);
  imports_[id]->backwards = order.backwards;
  if (order.sources.empty()) {
    loop_.Post(life_.Guard([this, id] { End(id, {}); }));
    return id;
  }
  const auto end = static_cast<std::size_t>(order.sources.back().end_block);
  CHECK_LE(end, order.chains.size());
  order.chains.resize(end);
  thread_.Post([this, watch = life_.watch(), id, order = std::move(order)](engine::Engine& engine) {
    const auto tokens =
        static_cast<std::int32_t>(order.chains.size()) * engine.pool().block_tokens();
    const absl::StatusOr<engine::Reservation> reserved =
        engine.Reserve(tokens, order.chains, order.accepts, order.tenant);
    if (!reserved.ok()) {
      // No room now: it is computed when there is.
      loop_.Post([this, watch, id, why = reserved.status()] {
        if (!watch.over()) End(id, {.fetched = {.status = why}});
      });
      return;
    }
    std::vector<Fetcher::Group> groups;
    for (std::int32_t g = 0; g < pool_.groups(); ++g) {
      const engine::SequenceInput::Blocks& blocks = reserved->blocks[static_cast<std::size_t>(g)];
      Fetcher::Group group = {.group = g, .layout = pool_.layout(g)};
      group.first_block = blocks.first_block;
      for (const engine::SlabRef slab : blocks.slabs) {
        group.slabs.push_back(pool_.Address(g, slab));
      }
      groups.push_back(std::move(group));
    }
    loop_.Post([this, watch, id, order, groups = std::move(groups), reservation = reserved->id,
                mapped = reserved->mapped,
                first = reserved->reused_tokens / engine.pool().block_tokens()]() mutable {
      if (watch.over()) return;
      Importing& importing = *imports_.at(id);
      importing.reservation = reservation;
      importing.first_block = first;
      importing.mapped = std::move(mapped);
      if (importing.cancelled) return OnFetched(id, {.end_block = first});
      BeginFetch(id, std::move(order), std::move(groups));
    });
  });
  return id;
}

void StorePart::BeginFetch(ImportId id, ImportOrder order, std::vector<Fetcher::Group> groups) {
  Importing& importing = *imports_.at(id);
  const std::int32_t first = importing.first_block;
  for (const Fetcher::Group& group : groups) {
    const std::int32_t from = std::max(first, group.first_block);
    importing.progress.all += std::max(0, order.sources.back().end_block - from);
  }
  Fetcher::Order fetch = {.spaces = spaces_,
                          .chains = std::move(order.chains),
                          .first_missing = first,
                          .groups = std::move(groups),
                          .sources = std::move(order.sources),
                          .map = order.map && !pool_.staged(),
                          .encoded = pool_.decodes(),
                          .backwards = order.backwards};
  if (order.backwards) {
    fetch.on_there = [this, &importing](
                         std::int32_t group, std::int32_t block, LossClass loss,
                         const std::shared_ptr<const MappedBlock>& mapped,
                         const std::shared_ptr<const kernels::EncodedBlock>& encoded) {
      ++importing.progress.there;
      thread_.Post([reservation = importing.reservation, group, block, loss, mapped,
                    encoded](engine::Engine& engine) {
        if (mapped != nullptr) engine.MapReserved(reservation, group, block, mapped);
        if (encoded != nullptr) engine.DecodeReserved(reservation, group, block, encoded);
        engine.SealReserved(reservation, group, block, loss);
      });
    };
  }
  importing.fetch = fetcher_->Fetch(
      std::move(fetch), [this, id](const Fetcher::Outcome& outcome) { OnFetched(id, outcome); });
  if (order.backwards) fetcher_->Want(*importing.fetch, importing.wanted);
}

void StorePart::Want(ImportId id, std::int32_t first_block) {
  const auto it = imports_.find(id);
  if (it == imports_.end()) return;
  it->second->wanted = std::max(it->second->wanted, first_block);
  if (it->second->fetch.has_value()) fetcher_->Want(*it->second->fetch, first_block);
}

StorePart::Progress StorePart::progress(ImportId id) const {
  const auto it = imports_.find(id);
  return it == imports_.end() ? Progress() : it->second->progress;
}

StorePart::ImportId StorePart::FetchTo(std::vector<Fetcher::Group> groups,
                                       std::vector<Chain> chains, std::int32_t first_block,
                                       std::vector<Fetcher::Source> sources,
                                       std::function<void(const Fetcher::Outcome&)> done) {
  const ImportId id = next_import_++;
  imports_[id] = std::make_unique<Importing>();
  imports_[id]->fetch =
      fetcher_->Fetch({.spaces = spaces_,
                       .chains = std::move(chains),
                       .first_missing = first_block,
                       .groups = std::move(groups),
                       .sources = std::move(sources),
                       .map = !pool_.staged(),
                       .encoded = pool_.decodes()},
                      [this, id, done = std::move(done)](const Fetcher::Outcome& outcome) {
                        Count(outcome);
                        imports_.erase(id);
                        done(outcome);
                      });
  return id;
}

void StorePart::Cancel(ImportId id) {
  const auto it = imports_.find(id);
  if (it == imports_.end()) return;
  it->second->cancelled = true;
  if (it->second->fetch.has_value()) fetcher_->Cancel(*it->second->fetch);
}

void StorePart::OnFetched(ImportId id, const Fetcher::Outcome& outcome) {
  Importing& importing = *imports_.at(id);
  importing.fetch.reset();
  Count(outcome);
  if (!outcome.status.ok()) ++imports_cut_;
  Imported imported = {.first_block = importing.first_block,
                       .fetched = outcome,
                       .mapped = std::move(importing.mapped)};
  for (const Fetcher::Mapped& block : outcome.mapped) imported.mapped.push_back(block.at);
  const engine::ReservationId reservation = importing.reservation;
  if (importing.backwards) {  // All that came was mapped and sealed by itself.
    thread_.Post([reservation, lineage = outcome.lineage](engine::Engine& engine) {
      engine.EndReservation(reservation, 0, lineage);
    });
    return End(id, imported);
  }
  auto finish = [reservation, mapped = outcome.mapped,
                 tokens = outcome.end_block * pool_.block_tokens(),
                 lineage = outcome.lineage](engine::Engine& engine) {
    for (const Fetcher::Mapped& block : mapped) {
      engine.MapReserved(reservation, block.group, block.block, block.at);
    }
    engine.EndReservation(reservation, tokens, lineage);
  };
  // Where nothing is brought, the end need not wait for the engine's step at hand.
  if (!pool_.staged() || outcome.end_block == 0) {
    thread_.Post(std::move(finish));
    return End(id, imported);
  }
  // What came is on its way to the device while the engine computes.
  auto end = [this, watch = life_.watch(), id, imported = std::move(imported)] {
    if (!watch.over()) End(id, imported);
  };
  thread_.Post([&thread = thread_, &loop = loop_, reservation, finish = std::move(finish),
                end = std::move(end), encoded = outcome.encoded](engine::Engine& engine) {
    for (const Fetcher::Encoded& block : encoded) {
      engine.DecodeReserved(reservation, block.group, block.block, block.as);
    }
    thread.Fill(engine, reservation, [&loop, finish, end](engine::Engine& e) {
      finish(e);
      loop.Post(end);
    });
  });
}

void StorePart::End(ImportId id, const Imported& imported) {
  const std::unique_ptr<Importing> over = std::move(imports_.at(id));
  imports_.erase(id);
  over->done(imported);
}

// ---- Figures.

void StorePart::Count(const Fetcher::Outcome& outcome) {
  for (const Fetcher::Span& span : outcome.spans) {
    const auto add = [&](std::string_view way, std::int32_t blocks, std::size_t bytes) {
      if (blocks == 0) return;
      auto& [all_blocks, all_bytes] = fetched_[{span.tier, std::string(ToString(span.codec)), way}];
      all_blocks += static_cast<std::uint64_t>(blocks);
      all_bytes += bytes;
    };
    add("copied", span.blocks - span.blocks_mapped - span.blocks_encoded,
        span.bytes - span.bytes_mapped - span.bytes_encoded);
    add("mapped", span.blocks_mapped, span.bytes_mapped);
    add("encoded", span.blocks_encoded, span.bytes_encoded);
    if (span.bytes < kMeasured || span.verified <= span.asked) continue;
    keeper_->Came(span.tier, span.kind, span.bytes, span.verified - span.asked - span.decode);
    const double rate = static_cast<double>(span.bytes) / ToSeconds(span.verified - span.asked);
    double& mean = rates_[{span.store, span.tier, span.codec}];
    mean = mean == 0 ? rate : mean + kNewest * (rate - mean);
  }
}

std::vector<FetchRate> StorePart::rates() const {
  std::vector<FetchRate> rates;
  for (const auto& [of, rate] : rates_) {
    const auto& [store, tier, codec] = of;
    rates.push_back({store, tier, static_cast<std::uint8_t>(codec), rate});
  }
  return rates;
}

void StorePart::WriteMetrics(MetricsWriter& writer) const {
  const Keeper::Stats stats = keeper_->stats();
  writer.Counter("penstock_store_kept_blocks_total", "Blocks that the store node took",
                 static_cast<double>(stats.taken));
  writer.Counter("penstock_store_kept_bytes_total", "Of their frames",
                 static_cast<double>(stats.bytes_taken));
  writer.Counter("penstock_store_demoted_blocks_total",
                 "Of those taken or refused, blocks that were leaving the pool",
                 static_cast<double>(stats.demoted));
  writer.Counter("penstock_store_not_kept_blocks_total",
                 "Blocks that the store node did not take, or that were lost on their way",
                 static_cast<double>(stats.refused + stats.dropped + stats.demotions_dropped));
  writer.Counter("penstock_store_encoded_by_device_blocks_total",
                 "Of blocks that frames were made of, those that a GPU had encoded",
                 static_cast<double>(stats.encoded_by_device));
  writer.Counter("penstock_store_encode_seconds_total", "Spent on making frames",
                 stats.encode_seconds);
  writer.Counter("penstock_store_imports_cut_total", "Imports of which less came than was planned",
                 static_cast<double>(imports_cut_));
  constexpr std::string_view kBlocks = "penstock_store_fetched_blocks_total";
  constexpr std::string_view kBytes = "penstock_store_fetched_bytes_total";
  writer.Declare(MetricKind::kCounter, kBlocks, "Blocks that came from store nodes");
  writer.Declare(MetricKind::kCounter, kBytes, "As they travelled, or lie mapped");
  const kvstore::MappedBlocks::Stats mapped = fetcher_->mapped().stats();
  writer.Gauge("penstock_store_mapped_blocks", "Blocks that are held in store nodes' memory",
               static_cast<double>(mapped.copies));
  writer.Gauge("penstock_store_mapped_bytes", "Of those", static_cast<double>(mapped.bytes));
  writer.Counter("penstock_store_mapped_lost_total",
                 "Of such, those whose lease or node was lost while they were held",
                 static_cast<double>(mapped.lost));
  for (const auto& [key, counts] : fetched_) {
    const auto& [tier, codec, way] = key;
    const MetricLabels labels = {
        {"tier", std::string(ToString(tier))}, {"codec", codec}, {"way", std::string(way)}};
    writer.Counter(kBlocks, "Blocks that came from store nodes", static_cast<double>(counts.first),
                   labels);
    writer.Counter(kBytes, "As they travelled, or lie mapped", static_cast<double>(counts.second),
                   labels);
  }
}

}  // namespace penstock::worker
