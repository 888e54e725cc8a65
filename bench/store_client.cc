// SPDX-License-Identifier: Apache-2.0
#include "bench/store_client.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <utility>

#include "base/check.h"
#include "kvstore/client/keeper.h"
#include "kvstore/node/store_node.h"

namespace penstock::bench {
namespace {

using kvstore::FoundMessage;
using kvstore::StoreMessage;

constexpr std::size_t kSlots = 16;
constexpr Duration kLong = std::chrono::minutes(1);

const LossSpaces kSpaces = MakeLossSpaces({"bench", "", "f16", "", "", "", ""});
const Namespace kSpace = kSpaces[LossClass::kExact];
const Namespace kCopySpace = CopySpaceOf(kSpaces, 0, LossClass::kExact);

PageLayout LayoutOfBlocks() {
  const auto layout = PageLayout::Make(
      {.cache_layers = 30, .kv_heads = 3, .k_dim = 64, .v_dim = 64, .dtype = KvDtype::kF16}, 32,
      32);
  CHECK(layout.ok());
  CHECK_EQ(layout->block_bytes(), kBlockBytes);
  return *layout;
}

std::vector<Chain> ChainsFrom(std::uint32_t round, std::size_t first, std::size_t count) {
  std::vector<Chain> chains;
  for (std::size_t i = first; i < first + count; ++i) chains.push_back(ChainOf(round, i));
  return chains;
}

}  // namespace

Chain ChainOf(std::uint32_t round, std::size_t block) {
  Chain chain;
  std::uint64_t mixed = (std::uint64_t{round} << 32 | block) * 0x9e3779b97f4a7c15u;
  for (std::uint8_t& byte : chain.bytes) {
    mixed = mixed * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<std::uint8_t>(mixed >> 56);
  }
  return chain;
}

StoreClient::StoreClient(Device& device, const std::string& name, const std::string& folder,
                         kvstore::StoreAddress store)
    : store_(std::move(store)),
      layout_(LayoutOfBlocks()),
      loop_(EpollLoop::Make(name).value()),
      staging_(device
                   .Allocate(kSlots * kvstore::Keeper::SlotBytes({}, {LayoutOfBlocks()}),
                             Sharing::kPeers)
                   .value()) {
  loop_->Run([&] {
    transfer::Endpoint::Options options;
    options.self = {name, 1};
    options.identity = kvstore::StoreIdentity();
    options.kinds = {transfer::Kind::kShm};
    options.socket_folder = folder;
    endpoint_ =
        transfer::Endpoint::Make(
            *loop_, options, [](std::unique_ptr<transfer::Channel>) {}, [](const absl::Status&) {})
            .value();
    segment_ = endpoint_->Register(*staging_);
    links_ = std::make_unique<kvstore::StoreLinks>([this](const transfer::Peer& peer,
                                                          const std::string& address,
                                                          kvstore::StoreLinks::Connected done) {
      endpoint_->Connect(peer, address, std::move(done));
    });
    turns_ = std::make_unique<transfer::LinkTurns>(*loop_, nullptr);
    fetcher_ =
        std::make_unique<kvstore::Fetcher>(*loop_, *links_, *turns_, kvstore::Fetcher::Options{});
  });
}

StoreClient::~StoreClient() {
  loop_->Run([this] {
    fetcher_.reset();
    turns_.reset();
    links_.reset();
    endpoint_.reset();
  });
}

void StoreClient::Await(const std::function<void(std::function<void()> done)>& begin) {
  std::promise<void> over;
  loop_->Run([&] { begin([&over] { over.set_value(); }); });
  over.get_future().wait();
}

void StoreClient::Put(const Blocks& blocks, std::size_t slots) {
  CHECK_LE(slots, kSlots);
  Await([&](std::function<void()> done) {
    next_ = 0;
    left_ = blocks.count;
    done_ = std::move(done);
    links_->Get(store_, [this, blocks, slots](absl::StatusOr<kvstore::StoreLink*> link) {
      CHECK(link.ok());
      for (std::size_t slot = 0; slot < std::min(slots, blocks.count); ++slot) {
        Offer(**link, blocks, slot);
      }
    });
  });
}

// The next block, from this slot.
void StoreClient::Offer(kvstore::StoreLink& link, const Blocks& blocks, std::size_t slot) {
  const std::size_t block = next_++;
  const std::size_t slot_bytes = staging_->size_bytes() / kSlots;
  const std::span<std::byte> frame(staging_->data() + slot * slot_bytes, slot_bytes);
  const Chain chain = ChainOf(blocks.round, blocks.first + block);
  const auto encoded =
      EncodeFrame(kvstore::CodecOf(kvstore::CodecId::kRaw), {.key = {kSpace, chain}}, layout_,
                  blocks.At(block), {}, scratch_, frame);
  CHECK(encoded.ok());
  const std::size_t header_bytes = kvstore::FrameHeaderBytesOf(frame).value();
  kvstore::OfferMessage offer = {
      .key = {kCopySpace, chain},
      .segment = segment_,
      .offset = slot * slot_bytes + kvstore::FramePayloadAt(header_bytes),
      .header = {frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(header_bytes)}};
  offer.id = link.Expect([this, &link, blocks, slot](const absl::StatusOr<StoreMessage>& answer) {
    CHECK(answer.ok());
    const auto& taken = std::get<kvstore::TakenMessage>(*answer);
    CHECK_EQ(taken.status.ToString(), "OK");
    link.Forget(taken.id);
    if (next_ < blocks.count) Offer(link, blocks, slot);
    if (--left_ == 0) done_();
  });
  CHECK(link.Send(offer).ok());
}

void StoreClient::Get(const Blocks& blocks, std::size_t at_a_time, std::size_t fetches) {
  Await([&](std::function<void()> done) {
    next_ = 0;
    left_ = blocks.count;
    done_ = std::move(done);
    for (std::size_t i = 0; i < fetches; ++i) FetchNext(blocks, at_a_time);
  });
}

void StoreClient::FetchNext(const Blocks& blocks, std::size_t at_a_time) {
  const std::size_t count = std::min(at_a_time, blocks.count - next_);
  if (count == 0) return;
  const auto end = static_cast<std::int32_t>(count);
  kvstore::Fetcher::Group group = {.layout = layout_};
  for (std::size_t i = next_; i < next_ + count; ++i) group.slabs.push_back(blocks.At(i));
  kvstore::Fetcher::Order order = {
      .spaces = kSpaces,
      .chains = ChainsFrom(blocks.round, blocks.first + next_, count),
      .groups = {std::move(group)},
      .sources = {{.store = store_, .end_block = end, .within = kLong}}};
  next_ += count;
  fetcher_->Fetch(std::move(order),
                  [this, blocks, at_a_time, count](const kvstore::Fetcher::Outcome& outcome) {
                    CHECK_EQ(outcome.status.ToString(), "OK");
                    CHECK_EQ(outcome.end_block, static_cast<std::int32_t>(count));
                    FetchNext(blocks, at_a_time);
                    if ((left_ -= count) == 0) done_();
                  });
}

void StoreClient::CheckMapped(const Blocks& blocks, std::span<const std::byte> mapped,
                              std::size_t at_a_time) {
  Await([&](std::function<void()> done) {
    next_ = 0;
    done_ = std::move(done);
    links_->Get(store_,
                [this, blocks, mapped, at_a_time](absl::StatusOr<kvstore::StoreLink*> link) {
                  CHECK(link.ok());
                  FindNext(**link, blocks, mapped, at_a_time);
                });
  });
}

void StoreClient::FindNext(kvstore::StoreLink& link, const Blocks& blocks,
                           std::span<const std::byte> mapped, std::size_t at_a_time) {
  if (next_ == blocks.count) return done_();
  const std::size_t count = std::min(at_a_time, blocks.count - next_);
  const std::size_t first = next_;
  next_ += count;
  const auto check = [this, &link, blocks, mapped, at_a_time, first,
                      count](const absl::StatusOr<StoreMessage>& answer) {
    CHECK(answer.ok());
    const auto& found = std::get<FoundMessage>(*answer);
    const auto header = kvstore::ParseFrameHeader(
        found.header,
        {.key = BlockKey{kSpace, ChainOf(blocks.round, blocks.first + first + found.index)},
         .shape = kvstore::ShapeOf(layout_)});
    CHECK(header.ok());
    std::size_t at = found.offset;
    for (std::int32_t layer = 0; layer < header->shape.cache_layers; ++layer) {
      const auto bytes = static_cast<std::size_t>(header->LayerBytes(layer));
      CHECK(kvstore::CheckFrameLayer(*header, layer, mapped.subspan(at, bytes)).ok());
      at += bytes;
    }
    CHECK(kvstore::GenerationIs(
        mapped, {.generation_offset = found.generation_offset, .generation = found.generation}));
    const std::uint64_t id = found.id;
    if (found.index + 1 < count) {
      CHECK(link.Send(kvstore::ReleaseMessage{id, found.index + 1}).ok());
      return;
    }
    CHECK(link.Send(kvstore::ReleaseMessage{id, UINT32_MAX}).ok());
    link.Forget(id);
    FindNext(link, blocks, mapped, at_a_time);
  };
  CHECK(link.Send(kvstore::FindMessage{
                      .id = link.Expect(check),
                      .within_ms = 60000,
                      .space = kCopySpace,
                      .chains = ChainsFrom(blocks.round, blocks.first + first, count)})
            .ok());
}

}  // namespace penstock::bench
