// SPDX-License-Identifier: Apache-2.0
// What each side of a connection says first: who it is, and what must be alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/epoll_loop.h"
#include "base/unique_fd.h"
#include "transfer/channel.h"

namespace penstock::transfer {

struct Hello {
  Peer self;
  std::vector<std::pair<std::string, std::string>> identity;
};

inline constexpr std::size_t kHelloBytesMax = std::size_t{128} << 10;
inline constexpr std::size_t kIdentityFieldsMax = 64;
inline constexpr std::size_t kIdentityFieldBytesMax = 1024;
inline constexpr std::size_t kNameBytesMax = 256;
inline constexpr std::size_t kPreambleBytes = 12;  // Magic, version, bytes behind it.

// INVALID_ARGUMENT naming what is too long or too many.
absl::Status CheckHello(const Hello& hello);
std::vector<std::byte> EncodeHello(const Hello& hello);
// How many bytes follow. INVALID_ARGUMENT: another program. FAILED_PRECONDITION: another version of
// this protocol, with both.
absl::StatusOr<std::size_t> DecodePreamble(std::span<const std::byte, kPreambleBytes> bytes);
absl::StatusOr<Hello> DecodeHello(std::span<const std::byte> bytes);
// FAILED_PRECONDITION naming the first field that differs and both values.
absl::Status CompareIdentity(const Hello& ours, const Hello& theirs);

// Sends ours and receives theirs over a connected socket, before anything else is sent on it.
// Reads not one byte more. On the loop.
class HelloExchange {
 public:
  // Gets the socket back with what the peer said, or why not. May destroy the exchange.
  using Done = std::function<void(absl::StatusOr<Hello> theirs, UniqueFd socket)>;
  // `packets`: each side's hello is one packet (SOCK_SEQPACKET). DEADLINE_EXCEEDED at `deadline`.
  HelloExchange(EpollLoop& loop, UniqueFd socket, bool packets, const Hello& ours,
                MonoTime deadline, Done done);
  ~HelloExchange();

 private:
  void OnReady();
  absl::Status Send();
  // OK and whole_ when all of it is there.
  absl::Status Receive();
  void End(absl::StatusOr<Hello> theirs);

  EpollLoop& loop_;
  UniqueFd socket_;
  const bool packets_;
  const Done done_;
  std::vector<std::byte> out_;
  std::size_t sent_ = 0;
  std::vector<std::byte> in_;
  std::size_t got_ = 0;
  bool whole_ = false;
  bool watched_ = false;
  Loop::TimerId timer_{};
};

}  // namespace penstock::transfer
