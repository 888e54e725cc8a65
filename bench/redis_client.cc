// SPDX-License-Identifier: Apache-2.0
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "bench/store_client.h"
#include "kernels/crc32c.h"

namespace penstock::bench {
namespace {

constexpr std::size_t kReadBytes = std::size_t{16} << 10;

std::string KeyOf(const Blocks& blocks, std::size_t i) {
  return absl::StrCat("block-", blocks.first + i);
}

std::span<const std::byte> BytesOf(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace

RedisClient::RedisClient(const std::string& socket)
    : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  CHECK_LT(socket.size(), sizeof(address.sun_path));
  std::memcpy(address.sun_path, socket.c_str(), socket.size() + 1);
  CHECK_EQ(::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
           0);
  const int bytes = 8 << 20;
  (void)::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
}

void RedisClient::Put(const Blocks& blocks, std::size_t depth) {
  for (std::size_t first = 0; first < blocks.count; first += depth) {
    const std::size_t end = std::min(first + depth, blocks.count);
    for (std::size_t i = first; i < end; ++i) {
      const std::string key = KeyOf(blocks, i);
      Send(BytesOf(absl::StrCat("*3\r\n$3\r\nSET\r\n$", key.size(), "\r\n", key, "\r\n$",
                                kBlockBytes, "\r\n")));
      Send({blocks.At(i), kBlockBytes});
      Send(BytesOf("\r\n"));
    }
    for (std::size_t i = first; i < end; ++i) CHECK_EQ(Line(), "+OK");
  }
}

void RedisClient::Get(const Blocks& blocks, std::size_t depth,
                      const std::vector<std::uint32_t>& crcs) {
  for (std::size_t first = 0; first < blocks.count; first += depth) {
    const std::size_t end = std::min(first + depth, blocks.count);
    std::string asked;
    for (std::size_t i = first; i < end; ++i) {
      const std::string key = KeyOf(blocks, i);
      absl::StrAppend(&asked, "*2\r\n$3\r\nGET\r\n$", key.size(), "\r\n", key, "\r\n");
    }
    Send(BytesOf(asked));
    for (std::size_t i = first; i < end; ++i) {
      CHECK_EQ(Line(), absl::StrCat("$", kBlockBytes));
      Receive(blocks.At(i), kBlockBytes);
      CHECK_EQ(kernels::Crc32c(0, blocks.At(i), kBlockBytes), crcs[blocks.first + i]);
      CHECK_EQ(Line(), "");
    }
  }
}

void RedisClient::Send(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    CHECK_GT(sent, 0);
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
}

void RedisClient::Receive(std::byte* to, std::size_t bytes) {
  const std::size_t had = std::min(bytes, read_.size() - at_);
  std::copy_n(read_.begin() + static_cast<std::ptrdiff_t>(at_), had, to);
  at_ += had;
  if (bytes == had) return;
  const ssize_t got = ::recv(socket_.get(), to + had, bytes - had, MSG_WAITALL);
  CHECK_EQ(got, static_cast<ssize_t>(bytes - had));
}

// Without its end.
std::string RedisClient::Line() {
  std::string line;
  while (true) {
    if (at_ == read_.size()) {
      read_.resize(kReadBytes);
      const ssize_t got = ::recv(socket_.get(), read_.data(), read_.size(), 0);
      CHECK_GT(got, 0);
      read_.resize(static_cast<std::size_t>(got));
      at_ = 0;
    }
    const char c = static_cast<char>(read_[at_++]);
    if (c == '\n') break;
    if (c != '\r') line += c;
  }
  return line;
}

}  // namespace penstock::bench
