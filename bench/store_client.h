// SPDX-License-Identifier: Apache-2.0
// Clients of a store node and of a redis-server, for benchmarks: each moves blocks of SmolLM2's shape
// between memory of its own and the server, as fast as one thread can.
//
// Every call blocks until all is done, and CHECKs that it went well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/epoll_loop.h"
#include "base/key.h"
#include "base/kv_spec.h"
#include "base/unique_fd.h"
#include "device/cpu_device.h"
#include "kvstore/client/fetcher.h"
#include "kvstore/node/store_links.h"
#include "transfer/endpoint.h"
#include "transfer/link_turns.h"

namespace penstock::bench {

inline constexpr std::size_t kBlockBytes = 720 << 10;  // 32 tokens of SmolLM2.

// Blocks number first to first + count, at `memory` and behind. Contents repeat in every round; keys
// do not.
struct Blocks {
  std::uint32_t round = 0;
  std::size_t first = 0;
  std::size_t count = 0;
  std::byte* memory = nullptr;

  std::byte* At(std::size_t i) const { return memory + i * kBlockBytes; }
};
Chain ChainOf(std::uint32_t round, std::size_t block);

// As a worker: frames are encoded into staging memory and offered; what is got is read into place
// and verified.
class StoreClient {
 public:
  StoreClient(Device& device, const std::string& name, const std::string& folder,
              kvstore::StoreAddress store);
  ~StoreClient();

  // Like a keeper: `slots` frames on their way at a time.
  void Put(const Blocks& blocks, std::size_t slots);
  // By the workers' own fetcher, `at_a_time` blocks of a chain in each fetch, so many fetches under way.
  void Get(const Blocks& blocks, std::size_t at_a_time, std::size_t fetches);
  // In place: `mapped` is the node's memory. Nothing is written.
  void CheckMapped(const Blocks& blocks, std::span<const std::byte> mapped, std::size_t at_a_time);

 private:
  // Calls begin(done) on the loop and waits for done().
  void Await(const std::function<void(std::function<void()> done)>& begin);
  void Offer(kvstore::StoreLink& link, const Blocks& blocks, std::size_t slot);
  void FetchNext(const Blocks& blocks, std::size_t at_a_time);
  void FindNext(kvstore::StoreLink& link, const Blocks& blocks, std::span<const std::byte> mapped,
                std::size_t at_a_time);

  const kvstore::StoreAddress store_;
  const PageLayout layout_;
  const std::unique_ptr<EpollLoop> loop_;
  std::unique_ptr<DeviceMemory> staging_;
  kvstore::CodecScratch scratch_;
  // On the loop.
  std::unique_ptr<transfer::Endpoint> endpoint_;
  transfer::SegmentId segment_{};
  std::unique_ptr<transfer::LinkTurns> turns_;
  std::unique_ptr<kvstore::StoreLinks> links_;
  std::unique_ptr<kvstore::Fetcher> fetcher_;
  std::size_t next_ = 0;
  std::size_t left_ = 0;
  std::function<void()> done_;
};

// RESP over a Unix socket, straight from and into the caller's memory.
class RedisClient {
 public:
  explicit RedisClient(const std::string& socket);
  // `depth` requests are sent before the first of them is answered.
  void Put(const Blocks& blocks, std::size_t depth);
  // Block i must have checksum crcs[i].
  void Get(const Blocks& blocks, std::size_t depth, const std::vector<std::uint32_t>& crcs);

 private:
  void Send(std::span<const std::byte> bytes);
  void Receive(std::byte* to, std::size_t bytes);
  std::string Line();

  UniqueFd socket_;
  std::vector<std::byte> read_;  // Received and not yet looked at, from `at_` on.
  std::size_t at_ = 0;
};

}  // namespace penstock::bench
