// SPDX-License-Identifier: Apache-2.0
// A store node and a worker's side of it, in one process on a virtual clock: for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/virtual_loop.h"
#include "kvstore/client/fetcher.h"
#include "kvstore/client/keeper.h"
#include "kvstore/disk/disk_testing.h"
#include "kvstore/host/host_testing.h"
#include "kvstore/node/store_links.h"
#include "kvstore/node/store_server.h"
#include "kvstore/node/tier_set.h"
#include "kvstore/remote/redis_link_testing.h"
#include "kvstore/remote/remote_tier.h"
#include "transfer/fault_link.h"
#include "transfer/link_turns.h"
#include "transfer/segment_table.h"

namespace penstock::kvstore {

using Bytes = std::vector<std::byte>;

// Blocks of 4 KiB: 2 layers of 2 heads of 32 + 32 values of 16 bits, 8 tokens.
PageLayout TestLayout(std::int32_t page_tokens, std::int32_t window_tokens = 0);
// What block `chain` of `group` holds, as canonical pages: a function of both.
Bytes CanonicalOf(std::int32_t group, const Chain& chain);
// The same in pages of this layout.
Bytes SlabOf(std::int32_t group, const Chain& chain, const PageLayout& layout);
// Of conversation `number`, so many blocks.
std::vector<Chain> TestChains(int number, std::int32_t blocks);
// Of block `index` of a chain, in group 0.
BlockKey TestCopyKey(const Chain& chain);
Bytes TestFrame(const Chain& chain, std::int32_t index, const std::vector<std::byte>& secret = {});
inline const LossSpaces kTestSpaces = MakeLossSpaces({"test", "", "f16", "", "", "", ""});
inline const Namespace kTestSpace = kTestSpaces[LossClass::kExact];

struct TestNode {
  struct Options {
    std::size_t host_pages = 256;
    std::uint64_t disk_bytes = 0;  // 0: no disk.
    std::string policy = "lru";
    Duration lease = std::chrono::seconds(5);
    FakeRedisLink::Values* remote = nullptr;  // What a server holds; null: no remote tier.
    TierSet::Options tiers = {};              // The secret is the server's.
    StoreServer::Options server = {};
    transfer::LinkQueue::Options disk_link = {};
  };
  TestNode(VirtualLoop& on, std::uint64_t seed, const Options& options,
           FakeDisk::Images images = {});
  ~TestNode();

  VirtualLoop& loop;
  const Options options;
  transfer::LinkTurns turns{loop, nullptr};
  // Shared with who maps it, as the real one.
  const std::shared_ptr<TestMemory> memory;
  std::unique_ptr<HostTier> host;
  std::unique_ptr<FakeDisk> disk;
  std::unique_ptr<DiskTier> disk_tier;
  FakeRedisLink* remote_link = nullptr;  // The tier's.
  std::unique_ptr<RemoteTier> remote_tier;
  std::vector<CopyEvent> events;
  std::unique_ptr<TierSet> tiers;
  transfer::SegmentTable segments;
  std::unique_ptr<StoreServer> server;
};

// A worker: a pool of blocks by key, a keeper and a fetcher.
class TestWorker {
 public:
  struct Options {
    std::int32_t page_tokens = 8;
    std::int32_t groups = 1;
    std::vector<Keeper::Form> forms = {{}};
    bool choose = false;  // Of the keeper.
    bool zeros = false;   // Blocks of nothing else, which pack well; not to be Checked.
    std::vector<std::byte> secret = {};
    bool device_encodes = false;  // What Keeper::Block::encoding asks for, as a GPU would.
    std::size_t slots = 4;
    std::optional<transfer::FaultPlan> faults = {};  // Of its links.
    bool map = false;                                // Blocks may stay in the node's memory.
    bool device_decodes = false;  // What the fetcher leaves encoded, as a GPU would.
    MappedBlocks::Options mapped = {};
  };
  TestWorker(VirtualLoop& loop, const Options& options);
  ~TestWorker();

  // Whose node `name` is from now on; null: nobody answers there.
  void SetNode(const std::string& name, TestNode* node) { nodes_[name] = node; }
  static StoreAddress AddressOf(const std::string& name) { return {{name, 1}, name}; }

  // Blocks of a chain come into the pool, and are sealed.
  void Compute(const std::vector<Chain>& chains, std::int32_t first_block = 0,
               LossClass loss = LossClass::kExact);
  // They leave it.
  void Drop(const std::vector<Chain>& chains, bool demote);

  struct Fetched {
    FetchId id{};
    bool backwards = false;
    std::optional<Fetcher::Outcome> outcome;  // Once it is over.
    // Of one that goes backwards, as it came: group, block.
    std::vector<std::pair<std::int32_t, std::int32_t>> there;
    // Of those, the mapped ones.
    std::map<std::pair<std::int32_t, std::int32_t>, std::shared_ptr<const MappedBlock>> mapped;
    std::vector<std::vector<Bytes>> slabs;  // By group, block.
    int decoded = 0;                        // Of those, left encoded by the fetcher.
  };
  // Blocks from..to of a chain, out of the sources (all of node `name` where there are none).
  std::shared_ptr<Fetched> Fetch(const std::vector<Chain>& chains, const std::string& name,
                                 Duration within = std::chrono::seconds(10),
                                 std::vector<Fetcher::Source> sources = {}, bool backwards = false);
  // Every good block holds what it should, and every one that was said to be there; of mapped ones,
  // those that have not changed.
  void Check(const Fetched& fetched, const std::vector<Chain>& chains) const;

  const PageLayout& layout() const { return layouts_[0]; }
  transfer::LinkTurns& turns() { return turns_; }
  Keeper& keeper() { return *keeper_; }
  Fetcher& fetcher() { return *fetcher_; }
  int held() const { return held_; }

 private:
  void Connect(const transfer::Peer& peer, StoreLinks::Connected done);
  std::shared_ptr<const std::byte[]> Encoded(std::int32_t group, const std::byte* slab,
                                             const kernels::KvEncoding& encoding) const;

  VirtualLoop& loop_;
  const Options options_;
  transfer::LinkTurns turns_{loop_, nullptr};
  const std::vector<PageLayout> layouts_;
  std::map<std::string, TestNode*> nodes_;
  std::map<std::pair<std::int32_t, Chain>, std::unique_ptr<Bytes>> pool_;
  int held_ = 0;  // Blocks that the keeper holds there.
  TestMemory staging_;
  transfer::SegmentTable segments_;
  std::uint64_t links_made_ = 0;
  TaskPool tasks_{{.threads = 0, .tasks_max = 0}};  // All run where they are posted.
  std::unique_ptr<StoreLinks> links_;
  std::unique_ptr<Keeper> keeper_;
  std::unique_ptr<Fetcher> fetcher_;
};

}  // namespace penstock::kvstore
