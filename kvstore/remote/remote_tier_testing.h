// SPDX-License-Identifier: Apache-2.0
// For tests of the remote tier with servers that are real, or at least have a socket.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "base/epoll_loop.h"
#include "base/log.h"
#include "kvstore/eviction_testing.h"
#include "kvstore/remote/redis_testing.h"
#include "kvstore/remote/remote_tier.h"

namespace penstock::kvstore {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

inline constexpr std::size_t kFrameBytes = 720 << 10;

inline std::shared_ptr<std::vector<std::byte>> FrameOf(std::uint64_t number, std::size_t bytes) {
  auto frame = std::make_shared<std::vector<std::byte>>(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    (*frame)[i] = static_cast<std::byte>((number * 131 + i) * 2654435761u >> 24);
  }
  return frame;
}

// With a message of its own: counts of who shares one are changed inside the installed Abseil, into
// which the thread sanitizer cannot see.
inline absl::Status Own(const absl::Status& status) { return {status.code(), status.message()}; }
template <typename T>
absl::StatusOr<T> Own(const absl::StatusOr<T>& result) {
  if (!result.ok()) return Own(result.status());
  return *result;
}
inline bool Own(bool result) { return result; }

// A tier, asked from the test's thread.
class Client {
 public:
  explicit Client(const std::string& address) { link.address = address; }
  ~Client() { Close(); }

  void Open() {
    loop->Run([this] {
      auto opened = OpenRedisLink(*loop, link);
      ASSERT_TRUE(opened.ok()) << opened.status();
      tier = std::make_unique<RemoteTier>(*loop, *std::move(opened), options);
    });
  }
  void Close() {
    loop->Run([this] { tier.reset(); });
  }
  template <typename T, typename Ask>
  T Wait(Ask ask) {
    const auto told = std::make_shared<std::promise<T>>();
    loop->Run([&] {
      const auto inside = std::make_shared<bool>(true);
      ask([told, inside](const T& result) {
        EXPECT_FALSE(*inside);
        told->set_value(Own(result));
      });
      *inside = false;
    });
    std::future<T> result = told->get_future();
    // Each call ends by a deadline of its own.
    if (result.wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
      ADD_FAILURE() << "no answer";
      std::abort();
    }
    return result.get();
  }
  absl::Status Put(std::uint64_t number, std::size_t bytes = kFrameBytes) {
    const auto frame = FrameOf(number, bytes);
    return Wait<absl::Status>(
        [&](auto done) { tier->Put(TestKey(number), {.bytes = *frame, .owner = frame}, done); });
  }
  // OK only with the right bytes.
  absl::Status Get(std::uint64_t number, std::size_t bytes = kFrameBytes,
                   Duration within = std::chrono::seconds(10)) {
    std::vector<std::byte> to(bytes);
    const auto got = Wait<absl::StatusOr<std::uint32_t>>([&](auto done) {
      tier->Get(TestKey(number), RemoteTier::In(to), loop->Now() + within, done);
    });
    if (!got.ok()) return got.status();
    return *got == bytes && to == *FrameOf(number, bytes) ? absl::OkStatus()
                                                          : absl::InternalError("other bytes");
  }
  absl::StatusOr<std::vector<std::uint32_t>> Find(const std::vector<std::uint64_t>& numbers,
                                                  Duration within = std::chrono::seconds(10)) {
    std::vector<BlockKey> keys;
    for (const std::uint64_t number : numbers) keys.push_back(TestKey(number));
    return Wait<absl::StatusOr<std::vector<std::uint32_t>>>(
        [&](auto done) { tier->Find(keys, loop->Now() + within, done); });
  }
  absl::Status Delete(std::uint64_t number) {
    return Wait<absl::Status>([&](auto done) { tier->Delete(TestKey(number), done); });
  }
  RemoteTier::Stats Stats() {
    RemoteTier::Stats stats;
    loop->Run([&] { stats = tier->stats(); });
    return stats;
  }
  // Asks until it works, as whoever uses the tier does.
  bool Recovers() {
    const MonoTime end = loop->Now() + std::chrono::seconds(30);
    while (loop->Now() < end) {
      if (Find({1}).ok()) return true;
    }
    return false;
  }

  RedisLinkOptions link;
  RemoteTier::Options options;
  std::unique_ptr<EpollLoop> loop = *EpollLoop::Make("test");
  std::unique_ptr<RemoteTier> tier;
};

class RemoteTierTest : public testing::Test {
 protected:
  RemoteTierTest() { SetLogLevel(LogLevel::kOff); }
  ~RemoteTierTest() override { SetLogLevel(LogLevel::kWarning); }
  TestFolder folder_;
};

}  // namespace penstock::kvstore
