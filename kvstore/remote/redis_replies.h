// SPDX-License-Identifier: Apache-2.0
// Replies of a server that speaks the Redis protocol (RESP 2), out of the bytes it sends: hiredis'
// parser, kept from believing the server. Arrays are refused: nothing we ask is answered by one.
//
// Why no more of hiredis than that: its connections (0.14) look up names while the loop waits, write
// without MSG_NOSIGNAL, move a value four times on its way out, and assert that a server never
// speaks unasked.
//
// Bytes of any origin. Holds at most twice value_bytes_max and 4 KiB, and what one Feed adds; room
// once had is kept for the next value. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"

namespace penstock::kvstore {

struct RedisReply {
  enum class Kind { kStatus, kError, kInteger, kNil, kValue };
  Kind kind = Kind::kNil;
  std::string_view text = {};             // Of kStatus and kError.
  std::int64_t integer = 0;               // Of kInteger.
  std::span<const std::byte> value = {};  // Of kValue.
};

class RedisReplies {
 public:
  // Hears each reply, in order; its text and value are there during the call. What it returns, if
  // not OK, ends the parsing.
  using OnReply = std::function<absl::Status(const RedisReply&)>;
  RedisReplies(std::size_t value_bytes_max, OnReply on_reply);
  ~RedisReplies();

  // More of what the server sent, cut anywhere. INVALID_ARGUMENT: no Redis protocol, an array, or a
  // value of more than value_bytes_max (both numbers); or what OnReply returned. After any of these
  // the connection is of no more use, and Feed gives the same again.
  absl::Status Feed(std::span<const std::byte> bytes);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::kvstore
