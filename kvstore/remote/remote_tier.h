// SPDX-License-Identifier: Apache-2.0
// The remote tier of a store node: frames in a server that speaks the Redis protocol, for
// deployments that run one. Several nodes may share it.
//
// It passes bytes and believes nobody: who reads verifies frame, key and, with a secret, MAC
// (codecs/frame.h). The value of a copy is its frame; its name is "penstock:1:" and the copy space
// and chain in hex. What the server lets go of, and when, is its own matter (maxmemory-policy).
//
// A server that is slow, gone, full, or talks nonsense costs time, never a hang: each call ends by
// its deadline, most sooner. While no connection can be made, calls end at once, as UNAVAILABLE.
//
// One connection (redis_link.h), many calls on their way. On one loop; callbacks come on it, not
// from inside the call, and not after the tier's end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "base/key.h"
#include "base/time.h"
#include "kvstore/remote/redis_link.h"

namespace penstock::kvstore {

// Bytes with who keeps them: unchanged while the owner is held.
struct RemoteBytes {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

class RemoteTier {
 public:
  struct Options {
    std::size_t frame_bytes_max = std::size_t{64} << 20;  // At most the link's value_bytes_max.
    std::size_t calls_max = 1024;
    std::size_t calls_sent_max = 32;  // The others wait here, where they can still be given up.
    std::size_t put_bytes_max = std::size_t{256} << 20;  // Of all puts that have not ended.
    Duration end_within = std::chrono::seconds(10);      // Of a Put and a Delete.
  };
  struct Stats {
    bool connected = false;
    std::size_t waiting = 0;                       // Calls that have not ended.
    std::uint64_t puts = 0, gets = 0, misses = 0;  // Misses: gets of what is not there.
    std::uint64_t refused = 0;                     // Errors that the server answered with.
    std::uint64_t late = 0;                        // Calls that ended by their deadline.
    RedisLink::Stats link;
  };
  static constexpr std::size_t kFindKeysMax = 4096;
  // Room for a value of so many bytes, which are then copied there at once: of that size, or larger.
  // An error is what the Get then ends with. Must not call the tier.
  using RoomFor = std::function<absl::StatusOr<std::span<std::byte>>(std::uint32_t bytes)>;
  // In `to`; INVALID_ARGUMENT, with both numbers, for what is larger.
  static RoomFor In(std::span<std::byte> to);

  RemoteTier(Loop& loop, std::unique_ptr<RedisLink> link, const Options& options);
  ~RemoteTier();

  // Errors of all calls: RESOURCE_EXHAUSTED: too many calls (or, of a Put, bytes) that have not
  // ended. UNAVAILABLE: no server, or it answers with an error, which the message has.
  // DEADLINE_EXCEEDED: a Put or Delete may happen yet.

  // What two puts of a key say is the same. `done` hears OK once the server has it;
  // RESOURCE_EXHAUSTED also: the server's memory is full; INVALID_ARGUMENT: larger than
  // frame_bytes_max, or nothing.
  void Put(const BlockKey& key, RemoteBytes frame, std::function<void(absl::Status)> done);
  // `done` hears the bytes of the value; NOT_FOUND; what `room` said.
  void Get(const BlockKey& key, RoomFor room, MonoTime deadline,
           std::function<void(absl::StatusOr<std::uint32_t>)> done);
  // How many bytes each has at the server; 0: it is not there. INVALID_ARGUMENT: of more than
  // kFindKeysMax at once.
  void Find(std::span<const BlockKey> keys, MonoTime deadline,
            std::function<void(absl::StatusOr<std::vector<std::uint32_t>>)> done);
  // OK: it is not there, until somebody puts it again.
  void Delete(const BlockKey& key, std::function<void(absl::Status)> done);

  Stats stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

std::string RemoteName(const BlockKey& key);

}  // namespace penstock::kvstore
