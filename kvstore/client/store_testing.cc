// SPDX-License-Identifier: Apache-2.0
#include "kvstore/client/store_testing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/kv_encoding.h"
#include "transfer/inproc_link.h"

namespace penstock::kvstore {
namespace {

constexpr std::int32_t kBlockTokens = 8;

std::vector<PageLayout> Layouts(const TestWorker::Options& options) {
  std::vector<PageLayout> layouts;
  for (std::int32_t g = 0; g < options.groups; ++g) {
    layouts.push_back(TestLayout(options.page_tokens, g == 0 ? 0 : 2 * kBlockTokens));
  }
  return layouts;
}

std::size_t StagingPages(const TestWorker::Options& options) {
  const std::size_t slot = Keeper::SlotBytes(
      {.forms = options.forms, .choose = options.choose, .secret = options.secret},
      Layouts(options));
  return options.slots * slot / HostTier::kPageBytes;
}

}  // namespace

PageLayout TestLayout(std::int32_t page_tokens, std::int32_t window_tokens) {
  const auto layout = PageLayout::Make({.window_tokens = window_tokens,
                                        .cache_layers = 2,
                                        .kv_heads = 2,
                                        .k_dim = 32,
                                        .v_dim = 32,
                                        .dtype = KvDtype::kF16},
                                       kBlockTokens, page_tokens);
  CHECK(layout.ok());
  return *layout;
}

Bytes CanonicalOf(std::int32_t group, const Chain& chain) {
  std::uint64_t state;
  std::memcpy(&state, chain.bytes.data(), sizeof(state));
  state ^= 0x9e3779b97f4a7c15u * static_cast<std::uint64_t>(group + 1);
  Bytes bytes(TestLayout(kBlockTokens).block_bytes());
  for (std::byte& b : bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    b = static_cast<std::byte>(state >> 56);
  }
  // Finite F16s: codecs with a loss take no others.
  for (std::size_t i = 1; i < bytes.size(); i += 2) bytes[i] &= std::byte{0xbf};
  return bytes;
}

Bytes SlabOf(std::int32_t group, const Chain& chain, const PageLayout& layout) {
  const Bytes canonical = CanonicalOf(group, chain);
  const PageLayout whole = TestLayout(kBlockTokens);
  Bytes slab(layout.slab_bytes());
  const std::size_t row = static_cast<std::size_t>(layout.group.k_dim) * 2;  // As wide as V's.
  for (std::int32_t layer = 0; layer < layout.group.cache_layers; ++layer) {
    for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
      for (std::int32_t token = 0; token < kBlockTokens; ++token) {
        const std::size_t page = layout.PageOffset(layer, head, token / layout.page_tokens);
        const auto in_page = static_cast<std::size_t>(token % layout.page_tokens);
        const std::size_t from = whole.PageOffset(layer, head, 0);
        const auto at = static_cast<std::size_t>(token);
        std::memcpy(slab.data() + page + in_page * row, canonical.data() + from + at * row, row);
        std::memcpy(slab.data() + page + layout.k_bytes() + in_page * row,
                    canonical.data() + from + whole.k_bytes() + at * row, row);
      }
    }
  }
  return slab;
}

std::vector<Chain> TestChains(int number, std::int32_t blocks) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(blocks * kBlockTokens));
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = number * 100000 + static_cast<TokenId>(i);
  }
  return ChainsOf(tokens, "", kBlockTokens);
}

BlockKey TestCopyKey(const Chain& chain) { return {CopySpace(kTestSpace, 0, "exact"), chain}; }

Bytes TestFrame(const Chain& chain, std::int32_t index, const std::vector<std::byte>& secret) {
  const PageLayout layout = TestLayout(kBlockTokens);
  const Codec& codec = CodecOf(CodecId::kRaw);
  const auto with = secret.empty() ? std::nullopt : std::optional<Secret>(secret);
  Bytes frame(FrameBytesMax(codec, ShapeOf(layout), with.has_value()));
  CodecScratch scratch;
  const auto bytes =
      EncodeFrame(codec, {.key = {kTestSpace, chain}, .first_position = index * kBlockTokens},
                  layout, SlabOf(0, chain, layout).data(), with, scratch, frame);
  CHECK(bytes.ok());
  frame.resize(*bytes);
  return frame;
}

TestNode::TestNode(VirtualLoop& on, std::uint64_t seed, const Options& chosen,
                   FakeDisk::Images images)
    : loop(on), options(chosen), memory(std::make_shared<TestMemory>(chosen.host_pages)) {
  auto made = HostTier::Make(
      memory->get(),
      {.policy = options.policy, .block_tokens = kBlockTokens, .lease = options.lease});
  CHECK(made.ok());
  host = *std::move(made);
  if (options.disk_bytes > 0) {
    disk = std::make_unique<FakeDisk>(loop, seed, std::move(images));
    auto opened = DiskTier::Open(
        loop, *disk, {.bytes_max = options.disk_bytes, .segment_bytes = 32 * 4096, .store = 1234});
    CHECK_EQ(opened.status().ToString(), "OK");
    disk_tier = *std::move(opened);
  }
  if (options.remote != nullptr) {
    auto link = std::make_unique<FakeRedisLink>(loop, seed, *options.remote);
    remote_link = link.get();
    remote_tier = std::make_unique<RemoteTier>(loop, std::move(link), RemoteTier::Options());
  }
  turns.Set("disk", options.disk_link);
  TierSet::Options tier_options = options.tiers;
  tier_options.secret = options.server.secret;
  tier_options.disk_policy = options.policy;
  tier_options.block_tokens = kBlockTokens;
  auto set =
      TierSet::Make({.loop = &loop,
                     .host = host.get(),
                     .disk = disk_tier.get(),
                     .remote = remote_tier.get(),
                     .turns = &turns},
                    tier_options, [this](const CopyEvent& event) { events.push_back(event); });
  CHECK(set.ok());
  tiers = *std::move(set);
  const transfer::SegmentId segment =
      segments.Register(transfer::SegmentTable::Segment{.bytes = memory->get()});
  server = std::make_unique<StoreServer>(loop, *tiers, turns, segment, options.server);
}

TestNode::~TestNode() {
  server.reset();
  loop.RunUntilIdle();  // Peers hear of it: their links know our segments.
  tiers.reset();
  remote_tier.reset();
  disk_tier.reset();
  disk.reset();
}

TestWorker::TestWorker(VirtualLoop& loop, const Options& options)
    : loop_(loop), options_(options), layouts_(Layouts(options)), staging_(StagingPages(options)) {
  links_ = std::make_unique<StoreLinks>(
      [this](const transfer::Peer& peer, const std::string&, StoreLinks::Connected done) {
        Connect(peer, std::move(done));
      });
  const std::span<std::byte> staging = staging_.get();
  const transfer::SegmentId segment =
      segments_.Register(transfer::SegmentTable::Segment{.bytes = staging});
  Keeper::Pool pool = {.layouts = layouts_};
  pool.hold = [this](const std::vector<Keeper::Block>& blocks,
                     const std::function<void(std::vector<Keeper::Held>)>& held) {
    std::vector<Keeper::Held> all;
    for (const Keeper::Block& block : blocks) {
      Keeper::Held& one = all.emplace_back();
      const auto it = pool_.find({block.group, block.key.chain});
      if (it == pool_.end()) continue;
      if (block.encoding.has_value()) {
        one.encoded = Encoded(block.group, it->second->data(), *block.encoding);
      }
      if (one.encoded != nullptr) continue;
      one.slab = it->second->data();
      ++held_;
    }
    loop_.Post([held, all] { held(all); });
  };
  pool.release = [this](const std::vector<Keeper::Block>& blocks) {
    held_ -= static_cast<int>(blocks.size());
  };
  keeper_ = std::make_unique<Keeper>(
      loop_, *links_, turns_, tasks_, kTestSpaces, std::move(pool),
      Keeper::Staging{segment, staging},
      Keeper::Options{
          .forms = options_.forms, .choose = options_.choose, .secret = options_.secret});
  fetcher_ = std::make_unique<Fetcher>(
      loop_, *links_, turns_,
      Fetcher::Options{.secret = options_.secret, .mapped = options_.mapped});
}

TestWorker::~TestWorker() {
  keeper_.reset();
  fetcher_.reset();
  links_.reset();
  loop_.RunUntilIdle();  // As the node's end.
}

void TestWorker::Connect(const transfer::Peer& peer, StoreLinks::Connected done) {
  TestNode* const node = nodes_[peer.name];
  if (node == nullptr) {
    loop_.Post([done] { done(absl::UnavailableError("nobody there")); });
    return;
  }
  auto [mine, theirs] = transfer::MakeInprocLinks(loop_, segments_, node->segments);
  std::unique_ptr<transfer::Link> link = std::move(mine);
  if (options_.faults.has_value()) {
    transfer::FaultPlan plan = *options_.faults;
    plan.seed += ++links_made_;
    link = transfer::MakeFaultLink(loop_, std::move(link), plan);
  }
  node->server->AddPeer(
      std::make_unique<transfer::Channel>(loop_, transfer::Peer{"worker", 1}, std::move(theirs)));
  auto channel = std::make_shared<std::unique_ptr<transfer::Channel>>(
      std::make_unique<transfer::Channel>(loop_, peer, std::move(link)));
  loop_.Post([done, channel] { done(std::move(*channel)); });
}

void TestWorker::Compute(const std::vector<Chain>& chains, std::int32_t first_block,
                         LossClass loss) {
  std::vector<Keeper::Block> sealed;
  for (std::size_t i = static_cast<std::size_t>(first_block); i < chains.size(); ++i) {
    for (std::int32_t g = 0; g < options_.groups; ++g) {
      const PageLayout& layout = layouts_[static_cast<std::size_t>(g)];
      pool_[{g, chains[i]}] = std::make_unique<Bytes>(
          options_.zeros ? Bytes(layout.slab_bytes()) : SlabOf(g, chains[i], layout));
      sealed.push_back({.group = g,
                        .key = {kTestSpaces[loss], chains[i]},
                        .parent = i == 0 ? std::nullopt : std::optional(chains[i - 1]),
                        .index = static_cast<std::int32_t>(i)});
    }
  }
  keeper_->Sealed(std::move(sealed));
}

std::shared_ptr<const std::byte[]> TestWorker::Encoded(std::int32_t group, const std::byte* slab,
                                                       const kernels::KvEncoding& encoding) const {
  if (!options_.device_encodes) return nullptr;
  const PageLayout& layout = layouts_[static_cast<std::size_t>(group)];
  auto encoded = std::make_shared<std::byte[]>(kernels::EncodedBlockBytes(encoding, layout));
  kernels::EncodeBlock(encoding, layout, slab, encoded.get());
  return encoded;
}

void TestWorker::Drop(const std::vector<Chain>& chains, bool demote) {
  for (std::size_t i = chains.size(); i > 0; --i) {
    for (std::int32_t g = 0; g < options_.groups; ++g) {
      const auto it = pool_.find({g, chains[i - 1]});
      if (it == pool_.end()) continue;
      if (demote) {
        keeper_->Leaving(
            {.group = g,
             .key = {kTestSpace, chains[i - 1]},
             .parent = i == 1 ? std::nullopt : std::optional(chains[i - 2]),
             .index = static_cast<std::int32_t>(i) - 1},
            [&] { return it->second->data(); },
            [&](const kernels::KvEncoding& encoding) {
              return Encoded(g, it->second->data(), encoding);
            });
      }
      pool_.erase(it);
    }
  }
}

std::shared_ptr<TestWorker::Fetched> TestWorker::Fetch(const std::vector<Chain>& chains,
                                                       const std::string& name, Duration within,
                                                       std::vector<Fetcher::Source> sources,
                                                       bool backwards) {
  auto fetched = std::make_shared<Fetched>();
  Fetcher::Order order = {.spaces = kTestSpaces,
                          .chains = chains,
                          .map = options_.map,
                          .encoded = options_.device_decodes,
                          .backwards = backwards};
  fetched->backwards = backwards;
  const auto decode = [this, fetched](std::int32_t group, std::int32_t block,
                                      const kernels::EncodedBlock& encoded) {
    Bytes& slab = fetched->slabs[static_cast<std::size_t>(group)][static_cast<std::size_t>(block)];
    EXPECT_EQ(slab, Bytes(slab.size())) << "both decoded and left encoded";
    kernels::DecodeBlock(encoded.encoding, layouts_[static_cast<std::size_t>(group)], encoded.bytes,
                         slab.data());
    ++fetched->decoded;
  };
  if (backwards) {
    order.on_there = [fetched, decode](
                         std::int32_t group, std::int32_t block, LossClass,
                         const std::shared_ptr<const MappedBlock>& mapped,
                         const std::shared_ptr<const kernels::EncodedBlock>& encoded) {
      EXPECT_FALSE(fetched->outcome.has_value());
      if (encoded != nullptr) decode(group, block, *encoded);
      fetched->there.emplace_back(group, block);
      if (mapped != nullptr) fetched->mapped[{group, block}] = mapped;
    };
  }
  const auto blocks = static_cast<std::int32_t>(chains.size());
  for (std::int32_t g = 0; g < options_.groups; ++g) {
    const PageLayout& layout = layouts_[static_cast<std::size_t>(g)];
    const std::int32_t window = layout.group.window_tokens / kBlockTokens;
    Fetcher::Group group = {.group = g, .layout = layout};
    group.first_block = window == 0 ? 0 : std::max(0, blocks - window);
    std::vector<Bytes>& slabs = fetched->slabs.emplace_back();
    slabs.assign(static_cast<std::size_t>(blocks), Bytes(layout.slab_bytes()));
    for (std::int32_t b = group.first_block; b < blocks; ++b) {
      group.slabs.push_back(slabs[static_cast<std::size_t>(b)].data());
    }
    order.groups.push_back(std::move(group));
  }
  if (sources.empty()) {
    sources.push_back({.store = AddressOf(name), .first_block = 0, .end_block = blocks});
  }
  for (Fetcher::Source& source : sources) source.within = within;
  order.sources = std::move(sources);
  const auto done = [fetched, decode](const Fetcher::Outcome& outcome) {
    EXPECT_FALSE(fetched->outcome.has_value());
    fetched->outcome = outcome;
    for (const Fetcher::Encoded& one : outcome.encoded) decode(one.group, one.block, *one.as);
  };
  fetched->id = fetcher_->Fetch(std::move(order), done);
  return fetched;
}

void TestWorker::Check(const Fetched& fetched, const std::vector<Chain>& chains) const {
  ASSERT_TRUE(fetched.outcome.has_value());
  const auto blocks = static_cast<std::int32_t>(chains.size());
  const auto is_right = [&](std::int32_t g, std::int32_t b, const MappedBlock* mapped) {
    const PageLayout& layout = layouts_[static_cast<std::size_t>(g)];
    const Bytes want = SlabOf(g, chains[static_cast<std::size_t>(b)], layout);
    if (mapped == nullptr) {
      return fetched.slabs[static_cast<std::size_t>(g)][static_cast<std::size_t>(b)] == want;
    }
    const bool same = std::memcmp(mapped->bytes(), want.data(), layout.block_bytes()) == 0;
    return same || mapped->Changed();
  };
  for (const auto& [g, b] : fetched.there) {
    const auto mapped = fetched.mapped.find({g, b});
    EXPECT_TRUE(is_right(g, b, mapped == fetched.mapped.end() ? nullptr : mapped->second.get()))
        << "group " << g << " block " << b << " was said to be there";
  }
  if (fetched.backwards) return;
  for (std::int32_t g = 0; g < options_.groups; ++g) {
    const PageLayout& layout = layouts_[static_cast<std::size_t>(g)];
    const std::int32_t window = layout.group.window_tokens / kBlockTokens;
    for (std::int32_t b = window == 0 ? 0 : std::max(0, blocks - window);
         b < fetched.outcome->end_block; ++b) {
      const auto& all = fetched.outcome->mapped;
      const auto mapped = std::ranges::find_if(
          all, [&](const Fetcher::Mapped& m) { return m.group == g && m.block == b; });
      EXPECT_TRUE(is_right(g, b, mapped == all.end() ? nullptr : mapped->at.get()))
          << "group " << g << " block " << b;
    }
  }
}

}  // namespace penstock::kvstore
