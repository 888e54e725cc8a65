// SPDX-License-Identifier: Apache-2.0
// Thousands of open streams on the server's few threads.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gateway/http_testing.h"

namespace penstock::gateway {
namespace {

constexpr std::size_t kStreams = 2000;

// Of this process, server and clients together.
std::size_t ResidentBytes() {
  std::size_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

TEST(HttpStreamsTest, ThousandsAreOpenAtOnce) {
  rlimit files{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
  constexpr rlim_t kFiles = 2 * kStreams + 100;  // Both ends are in this process.
  if (files.rlim_max < kFiles) GTEST_SKIP() << "only " << files.rlim_max << " files may be open";
  files.rlim_cur = std::max(files.rlim_cur, kFiles);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);

  FakeBackend backend;
  auto server = HttpServer::Start(backend.Get(), {.threads = 2});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::size_t before = ResidentBytes();
  std::vector<HttpClient> clients;
  for (std::size_t i = 0; i < kStreams; ++i) {
    clients.emplace_back((*server)->address());
    clients[i].Send(PostText("/v1/completions", R"({"prompt":"hi","stream":true})",
                             absl::StrCat("X-Request-Id: ", i, "\r\n")));
  }
  ASSERT_TRUE(backend.AwaitCount(kStreams));
  EXPECT_EQ((*server)->connections(), kStreams);
  std::vector<FakeBackend::Submitted> requests(kStreams);
  for (std::size_t i = 0; i < kStreams; ++i) {
    FakeBackend::Submitted request = backend.Await(i);
    const std::size_t client = std::stoul(request.request.id);  // They came in any order.
    requests[client] = std::move(request);
  }
  for (const auto& request : requests) request.sink->OnEvent(Started{});
  for (HttpClient& client : clients) {
    EXPECT_TRUE(absl::StrContains(client.ReadUntil("\r\n\r\n"), "200 OK"));
  }
  for (int token = 0; token < 5; ++token) {
    for (std::size_t i = 0; i < kStreams; ++i) {
      requests[i].sink->OnEvent(Delta{.text = absl::StrCat("<", i, ".", token, ">")});
    }
    for (std::size_t i = 0; i < kStreams; ++i) {
      const std::string want = absl::StrCat("<", i, ".", token, ">");
      EXPECT_TRUE(absl::StrContains(clients[i].ReadUntil("\n\n"), want));
    }
  }
  const std::size_t bytes = ResidentBytes() - before;
  std::printf("%zu open streams: %zu bytes each, with the test's own\n", kStreams,
              bytes / kStreams);
  for (const auto& request : requests) {
    request.sink->OnEvent(Finished{});
    request.sink->OnEvent(Usage{});
    request.sink->OnEnd(absl::OkStatus(), {});
  }
  for (HttpClient& client : clients) {
    EXPECT_TRUE(absl::StrContains(client.ReadUntil("0\r\n\r\n"), "[DONE]"));
  }
  EXPECT_EQ(backend.cancelled(), 0u);
}

}  // namespace
}  // namespace penstock::gateway
