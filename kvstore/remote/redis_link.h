// SPDX-License-Identifier: Apache-2.0
// One connection to a server that speaks the Redis protocol: the seam under which tests make it slow,
// lose it, and let it talk nonsense (redis_link_testing.h).
//
// On one loop. Events come on it, never from inside a call, not after the link's end, and must not
// end the link.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "base/time.h"
#include "kvstore/remote/redis_replies.h"

namespace penstock::kvstore {

class RedisLink {
 public:
  struct Events {
    std::function<void()> up;
    // To the oldest command without one. Not OK: the server talks nonsense; the connection ends.
    std::function<absl::Status(const RedisReply&)> reply;
    // The connection was lost, `was_up`, and with it the replies to all commands; or an attempt to
    // make one failed.
    std::function<void(const absl::Status& why, bool was_up)> down;
  };
  // A command is sent as it stands: `head`, then, if there are any, `bytes` and the end of a line.
  struct Command {
    std::string head;
    std::span<const std::byte> bytes = {};
    std::shared_ptr<const void> owner = {};  // Held until the bytes are sent, or never will be.
    std::uint64_t replies = 1;               // More where `head` has several commands.
  };
  struct Stats {
    std::uint64_t connections = 0;  // Ever up.
    std::uint64_t bytes_written = 0;
    std::uint64_t bytes_read = 0;
  };

  virtual ~RedisLink() = default;
  // Once, before anything else: connects, and again whenever the connection is lost.
  virtual void Start(Events events) = 0;
  virtual bool is_up() const = 0;
  // While it is up (CHECKed).
  virtual void Send(Command command) = 0;
  virtual Stats stats() const = 0;
};

struct RedisLinkOptions {
  std::string address;    // "host:port", "[v6]:port" or "unix:PATH".
  std::string user = {};  // Of the server's ACL; empty: the default one.
  std::string password = {};
  Duration greet_within = std::chrono::seconds(2);  // From connecting on.
  // Without a byte read or written while the server owes a reply: it is taken for gone.
  Duration silence_max = std::chrono::seconds(5);
  Duration pause_max = std::chrono::seconds(2);
  std::size_t value_bytes_max = std::size_t{64} << 20;  // 1 to 512 MiB, the protocol's own limit.
};

// A real one. It is up once the server has answered a greeting: AUTH where there is a password, else
// PING. Between attempts are pauses that double from 10 ms to pause_max.
//
// No TLS: for a network whose members are trusted with what is stored (frames carry a MAC). The
// password appears in no log and no error, whatever the server says.
//
// INVALID_ARGUMENT: no such address, or value_bytes_max out of its range. Asks the resolver, once, and
// waits for it: UNAVAILABLE when it does not know the host.
absl::StatusOr<std::unique_ptr<RedisLink>> OpenRedisLink(EpollLoop& loop,
                                                         const RedisLinkOptions& options);

// "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n" of {"GET", "k"}. With `bytes`: one more argument of so many, which
// follow behind.
std::string RedisCommandHead(std::span<const std::string_view> arguments,
                             const std::size_t* bytes = nullptr);

}  // namespace penstock::kvstore
