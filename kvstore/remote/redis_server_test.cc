// SPDX-License-Identifier: Apache-2.0
// The remote tier with a real redis-server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/remote/remote_tier_testing.h"

namespace penstock::kvstore {
namespace {

constexpr std::uint64_t kFrames = 100;

class RealRedisTest : public RemoteTierTest {
 protected:
  void SetUp() override {
    if (!RealRedis::Exists()) GTEST_SKIP() << "no redis-server (./dev installs it)";
  }
};

TEST_F(RealRedisTest, KeepsWhatItWasGiven) {
  for (const bool tcp : {false, true}) {
    SCOPED_TRACE(tcp ? "TCP" : "Unix socket");
    const auto redis =
        tcp ? RealRedis::OnTcp(folder_.path()) : std::make_unique<RealRedis>(folder_.path());
    ASSERT_EQ(redis->trouble(), "");
    Client client(redis->address());
    client.Open();
    EXPECT_TRUE(absl::IsNotFound(client.Get(1)));
    for (std::uint64_t number = 1; number < 20; ++number) {
      ASSERT_EQ(client.Put(number), absl::OkStatus());
    }
    EXPECT_EQ(client.Put(20, 1), absl::OkStatus());
    EXPECT_EQ(client.Put(1), absl::OkStatus());
    for (std::uint64_t number = 1; number < 20; ++number) {
      ASSERT_EQ(client.Get(number), absl::OkStatus());
    }
    EXPECT_THAT(client.Find({1, 99, 20}).value(), ElementsAre(kFrameBytes, 0, 1));
    EXPECT_THAT(client.Find({}).value(), ElementsAre());
    EXPECT_EQ(client.Delete(1), absl::OkStatus());
    EXPECT_EQ(client.Delete(1), absl::OkStatus());
    EXPECT_TRUE(absl::IsNotFound(client.Get(1)));
    const RemoteTier::Stats stats = client.Stats();
    EXPECT_TRUE(stats.connected);
    EXPECT_EQ(stats.waiting, 0u);
    EXPECT_EQ(stats.puts, 21u);
    EXPECT_EQ(stats.gets, 21u);
    EXPECT_EQ(stats.misses, 2u);
    EXPECT_EQ(stats.refused + stats.late, 0u);
    EXPECT_EQ(stats.link.connections, 1u);
    EXPECT_GT(stats.link.bytes_written, 20 * kFrameBytes);
    EXPECT_GT(stats.link.bytes_read, 19 * kFrameBytes);
  }
}

TEST_F(RealRedisTest, ManyCallsAreOnTheirWayAtOnce) {
  RealRedis redis(folder_.path());
  ASSERT_EQ(redis.trouble(), "");
  Client client(redis.address());
  client.Open();
  int right = 0;
  client.Wait<bool>([&](const std::function<void(bool)>& over) {
    for (std::uint64_t number = 0; number < kFrames; ++number) {
      const std::size_t bytes = 1 + number * 7919 % 300'000;
      const auto frame = FrameOf(number, bytes);
      const auto to = std::make_shared<std::vector<std::byte>>(bytes);
      client.tier->Put(TestKey(number), {.bytes = *frame, .owner = frame}, [](const auto&) {});
      // In order: the server has what was put before.
      client.tier->Get(TestKey(number), RemoteTier::In(*to), client.loop->Now() + seconds(30),
                       [&right, number, frame, to, over](const absl::StatusOr<std::uint32_t>& got) {
                         right += got.ok() && *got == frame->size() && *to == *frame ? 1 : 0;
                         if (number + 1 == kFrames) over(true);
                       });
    }
  });
  EXPECT_EQ(right, kFrames);
}

TEST_F(RealRedisTest, RoomThatIsTooSmallIsSaid) {
  RealRedis redis(folder_.path());
  ASSERT_EQ(redis.trouble(), "");
  Client client(redis.address());
  client.options.frame_bytes_max = 1000;
  client.Open();
  EXPECT_EQ(client.Put(1, 1000), absl::OkStatus());
  const absl::Status small = client.Get(1, 999);
  EXPECT_TRUE(absl::IsInvalidArgument(small)) << small;
  EXPECT_THAT(small.ToString(), HasSubstr("needs 1000 bytes to be read to, got 999"));
  EXPECT_EQ(client.Get(1, 1000), absl::OkStatus());
  EXPECT_THAT(client.Put(2, 1001).ToString(), HasSubstr("from 1 to 1000 bytes, got 1001"));
  EXPECT_TRUE(absl::IsInvalidArgument(client.Put(2, 0)));
  EXPECT_TRUE(client.Stats().connected);
  EXPECT_TRUE(absl::IsInvalidArgument(client.Find(std::vector<std::uint64_t>(5000)).status()));
}

TEST_F(RealRedisTest, AFullServerSaysSo) {
  RealRedis redis(folder_.path(), {"--maxmemory", "4mb", "--maxmemory-policy", "noeviction"});
  ASSERT_EQ(redis.trouble(), "");
  Client client(redis.address());
  client.Open();
  absl::Status status;
  std::uint64_t kept = 0;
  while ((status = client.Put(kept)).ok()) ASSERT_LT(++kept, 20u);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(status.ToString(), HasSubstr("OOM"));
  EXPECT_EQ(client.Get(0), absl::OkStatus());
  EXPECT_EQ(client.Stats().refused, 1u);
}

TEST_F(RealRedisTest, PasswordsAreGivenAndNeverTold) {
  RealRedis redis(folder_.path(), {"--requirepass", "hunter2-hunter2", "--user", "kv", "on",
                                   ">sesame-sesame", "allkeys", "allcommands"});
  ASSERT_EQ(redis.trouble(), "");
  struct Case {
    const char* user;
    const char* password;
    const char* trouble;
  };
  for (const Case& c :
       {Case{"", "hunter2-hunter2", ""}, Case{"kv", "sesame-sesame", ""}, Case{"", "", "NOAUTH"},
        Case{"", "sesame-sesame", "WRONGPASS"}, Case{"no", "hunter2-hunter2", "WRONGPASS"}}) {
    SCOPED_TRACE(absl::StrCat("'", c.user, "' '", c.password, "'"));
    SetLogLevel(LogLevel::kDebug);
    testing::internal::CaptureStderr();
    Client client(redis.address());
    client.link.user = c.user;
    client.link.password = c.password;
    client.Open();
    const absl::Status status = client.Put(1, 10);
    client.Close();
    SetLogLevel(LogLevel::kOff);
    const std::string said = testing::internal::GetCapturedStderr() + status.ToString();
    EXPECT_EQ(status.ok(), *c.trouble == '\0') << status;
    EXPECT_THAT(said, HasSubstr(c.trouble));
    EXPECT_THAT(said, Not(HasSubstr("hunter2")));
    EXPECT_THAT(said, Not(HasSubstr("sesame")));
  }
}

TEST_F(RealRedisTest, AServerThatIsGoneAndComesBack) {
  auto redis = std::make_unique<RealRedis>(folder_.path());
  ASSERT_EQ(redis->trouble(), "");
  Client client(redis->address());
  client.Open();
  EXPECT_EQ(client.Put(1), absl::OkStatus());
  redis.reset();
  // The first may meet the connection's end, the others meet none.
  for (int i = 0; i < 3; ++i) {
    const absl::Status gone = client.Get(1);
    EXPECT_TRUE(absl::IsUnavailable(gone)) << gone;
  }
  EXPECT_FALSE(client.Stats().connected);
  redis = std::make_unique<RealRedis>(folder_.path());
  ASSERT_EQ(redis->trouble(), "");
  EXPECT_TRUE(client.Recovers());
  EXPECT_TRUE(absl::IsNotFound(client.Get(1)));
  EXPECT_EQ(client.Put(1), absl::OkStatus());
  EXPECT_EQ(client.Get(1), absl::OkStatus());
  EXPECT_EQ(client.Stats().link.connections, 2u);
}

TEST_F(RealRedisTest, AServerThatHangsCostsTimeAlone) {
  RealRedis redis(folder_.path());
  ASSERT_EQ(redis.trouble(), "");
  Client client(redis.address());
  client.link.silence_max = seconds(1);
  client.link.greet_within = milliseconds(300);
  client.options.end_within = milliseconds(100);
  client.Open();
  EXPECT_EQ(client.Put(1), absl::OkStatus());
  redis.Stop();
  EXPECT_TRUE(absl::IsDeadlineExceeded(client.Get(1, kFrameBytes, milliseconds(50))));
  EXPECT_TRUE(absl::IsDeadlineExceeded(client.Put(2)));
  EXPECT_EQ(client.Stats().late, 2u);
  // Then it is taken for gone, and nobody waits any more.
  absl::Status status;
  for (int i = 0; i < 400 && !absl::IsUnavailable(status); ++i) {
    status = client.Get(1, kFrameBytes, milliseconds(50));
  }
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  redis.Continue();
  EXPECT_TRUE(client.Recovers());
  EXPECT_EQ(client.Get(1), absl::OkStatus());
}

}  // namespace
}  // namespace penstock::kvstore
