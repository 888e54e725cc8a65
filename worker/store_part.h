// SPDX-License-Identifier: Apache-2.0
// A worker's part in the cluster's KV store, of prefill and decode workers alike: blocks that its
// pool seals, or lets go of, are kept at its store node; blocks that nodes have are brought into
// the pool before a prompt is computed.
//
// It has a transfer endpoint of its own: nodes serve every model, so what two sides must have in
// common here is the store's protocol alone; each frame says what it is.
//
// On its loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "base/key.h"
#include "base/metrics.h"
#include "base/store_load.h"
#include "base/task_pool.h"
#include "device/device.h"
#include "engine/block_export.h"
#include "engine/engine_thread.h"
#include "kvstore/client/fetcher.h"
#include "kvstore/client/keeper.h"
#include "kvstore/node/store_links.h"
#include "transfer/endpoint.h"
#include "transfer/link_turns.h"
#include "worker/block_importer.h"

namespace penstock::worker {

class StorePart final : public BlockImporter {
 public:
  struct Options {
    transfer::Endpoint::Options endpoint;  // `self` is the worker; the identity is set here.
    kvstore::Keeper::Options keeper;
    std::size_t staging_slots = 16;  // Frames on their way to the node.
    // Of which copies may be fetched, with the class of what they make of exact blocks.
    std::vector<kvstore::Keeper::Form> fetched = {};
    kvstore::MappedBlocks::Options mapped = {};
  };
  // `turns` are the process's. `thread` runs an engine on `pool`, whose blocks are of `spaces`; all
  // outlive it. UNAVAILABLE when an address is taken, RESOURCE_EXHAUSTED when there is no memory
  // for staging.
  static absl::StatusOr<std::unique_ptr<StorePart>> Make(
      EpollLoop& loop, transfer::LinkTurns& turns, engine::EngineThread& thread,
      engine::KvPool& pool, const LossSpaces& spaces, const Options& options);
  // Imports never tell; what they hold ends with the engine.
  ~StorePart() override;

  // Where copies go from now on; without a name, nowhere.
  void SetStore(const kvstore::StoreAddress& store);

  ImportId Import(ImportOrder order, ImportDone done) override;
  void Want(ImportId id, std::int32_t first_block) override;
  Progress progress(ImportId id) const override;
  void Cancel(ImportId id) override;  // And what FetchTo began.
  // As Import, but to memory of the caller's, which stays until `done`: blocks from first_block on.
  // Those that the outcome has mapped, or encoded, are not there.
  ImportId FetchTo(std::vector<kvstore::Fetcher::Group> groups, std::vector<Chain> chains,
                   std::int32_t first_block, std::vector<kvstore::Fetcher::Source> sources,
                   std::function<void(const kvstore::Fetcher::Outcome& fetched)> done);

  const kvstore::Keeper& keeper() const { return *keeper_; }
  std::vector<FetchRate> rates() const;  // Moving means.
  void WriteMetrics(MetricsWriter& writer) const;

 private:
  struct Importing;

  StorePart(EpollLoop& loop, engine::EngineThread& thread, engine::KvPool& pool,
            const LossSpaces& spaces);
  void BeginFetch(ImportId id, ImportOrder order, std::vector<kvstore::Fetcher::Group> groups);
  void OnFetched(ImportId id, const kvstore::Fetcher::Outcome& outcome);
  void End(ImportId id, const Imported& imported);
  void Count(const kvstore::Fetcher::Outcome& outcome);

  EpollLoop& loop_;
  engine::EngineThread& thread_;
  engine::KvPool& pool_;  // Its layouts and addresses alone; the rest is the engine's thread's.
  const LossSpaces spaces_;
  TaskPool tasks_{{.threads = 1}};
  std::unique_ptr<DeviceMemory> staging_;
  std::unique_ptr<transfer::Endpoint> endpoint_;
  std::unique_ptr<kvstore::StoreLinks> links_;
  std::unique_ptr<kvstore::Keeper> keeper_;
  std::unique_ptr<kvstore::Fetcher> fetcher_;
  std::unique_ptr<engine::BlockExport> export_;
  std::map<ImportId, std::unique_ptr<Importing>> imports_;
  ImportId next_import_ = 1;
  std::map<std::tuple<std::string, Tier, kvstore::CodecId>, double> rates_;
  // By tier, codec, and how they came: blocks, bytes.
  std::map<std::tuple<Tier, std::string, std::string_view>, std::pair<std::uint64_t, std::uint64_t>>
      fetched_;
  std::uint64_t imports_cut_ = 0;  // That ended before all had come.
  transfer::Life life_;
};

}  // namespace penstock::worker
