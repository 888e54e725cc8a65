// SPDX-License-Identifier: Apache-2.0
#include "kvstore/remote/remote_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/eviction_testing.h"
#include "kvstore/remote/redis_testing.h"

namespace penstock::kvstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr std::size_t kFrameBytes = 720 << 10;
constexpr std::uint64_t kFrames = 100;

std::shared_ptr<std::vector<std::byte>> FrameOf(std::uint64_t number, std::size_t bytes) {
  auto frame = std::make_shared<std::vector<std::byte>>(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    (*frame)[i] = static_cast<std::byte>((number * 131 + i) * 2654435761u >> 24);
  }
  return frame;
}

// With a message of its own: counts of who shares one are changed inside the installed Abseil, into
// which the thread sanitizer cannot see.
absl::Status Own(const absl::Status& status) { return {status.code(), status.message()}; }
template <typename T>
absl::StatusOr<T> Own(const absl::StatusOr<T>& result) {
  if (!result.ok()) return Own(result.status());
  return *result;
}
bool Own(bool result) { return result; }

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
    if (result.wait_for(seconds(60)) != std::future_status::ready) {
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
                   Duration within = seconds(10)) {
    std::vector<std::byte> to(bytes);
    const auto got = Wait<absl::StatusOr<std::uint32_t>>([&](auto done) {
      tier->Get(TestKey(number), RemoteTier::In(to), loop->Now() + within, done);
    });
    if (!got.ok()) return got.status();
    return *got == bytes && to == *FrameOf(number, bytes) ? absl::OkStatus()
                                                          : absl::InternalError("other bytes");
  }
  absl::StatusOr<std::vector<std::uint32_t>> Find(const std::vector<std::uint64_t>& numbers,
                                                  Duration within = seconds(10)) {
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
    const MonoTime end = loop->Now() + seconds(30);
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

// With a real server.
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

// One that greets as it should, then says what the test wants.
FakeRedis::Answer Greets(FakeRedis::Answer then) {
  return [then](std::string_view heard) -> std::optional<std::string> {
    return heard.find("PING") != std::string_view::npos ? "+PONG\r\n" : then(heard);
  };
}

TEST_F(RemoteTierTest, NonsenseIsAMissAndEndsTheConnection) {
  struct Case {
    const char* name;
    std::optional<std::string> says;
  };
  for (const Case& c : {
           Case{"closes", std::nullopt},
           Case{"another protocol", "HTTP/1.1 400 Bad Request\r\n\r\n"},
           Case{"an array", "*1\r\n$1\r\na\r\n"},
           Case{"a number", ":1\r\n"},
           Case{"a status", "+OK\r\n"},
           Case{"a value longer than any", "$9999999999\r\nabc"},
           Case{"noise", std::string("\0\1\2\xff", 4)},
           Case{"more than it was asked for", "$-1\r\n+OK\r\n"},
       }) {
    SCOPED_TRACE(c.name);
    FakeRedis fake(folder_.path(), Greets([&](std::string_view) { return c.says; }));
    {
      Client client(fake.address());
      client.Open();
      for (int i = 0; i < 3; ++i) {
        const absl::Status status = client.Get(1);
        EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsNotFound(status)) << status;
      }
      // It is tried again all the time.
      const MonoTime end = client.loop->Now() + seconds(20);
      while (fake.connections() < 3 && client.loop->Now() < end) (void)client.Get(1);
      EXPECT_GE(fake.connections(), 3);
    }
    std::remove((folder_.path() + "/fake").c_str());
  }
}

TEST_F(RemoteTierTest, ErrorsOfTheServerAreMisses) {
  FakeRedis fake(folder_.path(),
                 Greets([](std::string_view) { return "-LOADING wait\1a while\r\n"; }));
  Client client(fake.address());
  client.Open();
  for (const absl::Status& status :
       {client.Get(1), client.Put(1, 10), client.Delete(1), client.Find({1}).status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(status.ToString(), HasSubstr("the server says: LOADING wait?a while"));
  }
  EXPECT_EQ(fake.connections(), 1);
  EXPECT_EQ(client.Stats().refused, 4u);
}

TEST_F(RemoteTierTest, AServerThatRepeatsThePasswordIsNotQuoted) {
  bool greeted = false;
  FakeRedis fake(folder_.path(), [&](std::string_view heard) -> std::optional<std::string> {
    if (heard.find("AUTH") != std::string_view::npos && std::exchange(greeted, true)) {
      return "-ERR unknown command 'AUTH', with args beginning with: 'swordfish'\r\n";
    }
    return greeted && heard.find("AUTH") != std::string_view::npos ? "+OK\r\n"
                                                                   : "-ERR swordfish\r\n+OK\r\n";
  });
  SetLogLevel(LogLevel::kDebug);
  testing::internal::CaptureStderr();
  Client client(fake.address());
  client.link.password = "swordfish";
  client.Open();
  std::string said = client.Put(1).ToString();  // Quoted, then the connection ends.
  EXPECT_THAT(said, HasSubstr("it repeats the password"));
  absl::Status refused;
  const MonoTime end = client.loop->Now() + seconds(20);
  while (refused.ToString().find("refuses the greeting") == std::string::npos &&
         client.loop->Now() < end) {
    refused = client.Put(1);
  }
  EXPECT_THAT(refused.ToString(), HasSubstr("refuses the greeting: ERR"));
  client.Close();
  SetLogLevel(LogLevel::kOff);
  said += refused.ToString() + testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, Not(HasSubstr("swordfish")));
}

TEST_F(RemoteTierTest, AnAnswerThatComesLateIsNotTakenForAnother) {
  // The first is answered with the second.
  FakeRedis fake(folder_.path(), Greets([](std::string_view heard) {
                   return heard.find("GET") != std::string_view::npos ? "" : "$4\r\nabcd\r\n:7\r\n";
                 }));
  Client client(fake.address());
  client.Open();
  std::vector<std::byte> to(4);
  int asked = 0;
  const auto late = client.Wait<absl::StatusOr<std::uint32_t>>([&](auto done) {
    client.tier->Get(
        TestKey(1),
        [&](std::uint32_t) {
          ++asked;
          return std::span(to);
        },
        client.loop->Now() + milliseconds(30), done);
  });
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.status())) << late.status();
  EXPECT_THAT(client.Find({1}).value(), ElementsAre(7));
  EXPECT_EQ(asked, 0);
  EXPECT_EQ(to, std::vector<std::byte>(4));
  EXPECT_EQ(fake.connections(), 1);
}

TEST_F(RemoteTierTest, CallsAndBytesAreBounded) {
  FakeRedis fake(folder_.path(), Greets([](std::string_view) { return ""; }));
  Client client(fake.address());
  client.options.calls_max = 4;
  client.options.put_bytes_max = 100;
  client.options.end_within = milliseconds(100);
  client.Open();
  std::vector<absl::Status> ended;
  client.Wait<bool>([&](const std::function<void(bool)>& over) {
    const auto frame = FrameOf(1, 60);
    const auto put = [&](std::function<void()> then) {
      client.tier->Put(TestKey(1), {.bytes = *frame, .owner = frame},
                       [&ended, then](const absl::Status& status) {
                         ended.push_back(Own(status));
                         then();
                       });
    };
    put([] {});
    put([] {});  // Too many bytes.
    for (int i = 0; i < 3; ++i) {
      client.tier->Find({}, client.loop->Now(), [](const auto&) {});
      client.tier->Delete(TestKey(1), [](const auto&) {});
    }
    client.tier->Delete(TestKey(1), [&ended, over](const absl::Status& status) {
      ended.push_back(Own(status));
      over(true);
    });
  });
  ASSERT_EQ(ended.size(), 2u);
  EXPECT_THAT(ended[0].ToString(),
              HasSubstr("60 bytes more would wait for the server beside 60, of 100"));
  EXPECT_THAT(ended[1].ToString(), HasSubstr("4 calls wait for the server, of 4"));
  for (const absl::Status& status : ended) EXPECT_TRUE(absl::IsResourceExhausted(status));
  // Their time comes, and with it there is room for others.
  absl::Status status = ended[1];
  const MonoTime end = client.loop->Now() + seconds(20);
  while (absl::IsResourceExhausted(status) && client.loop->Now() < end) status = client.Delete(2);
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
}

TEST_F(RemoteTierTest, NothingIsCalledAfterTheEnd) {
  FakeRedis fake(folder_.path(), Greets([](std::string_view) { return ""; }));
  Client client(fake.address());
  client.Open();
  int called = 0;
  client.loop->Run([&] {
    client.tier->Delete(TestKey(1), [&](const auto&) { ++called; });
    client.tier->Get(TestKey(1), RemoteTier::In({}), client.loop->Now(),
                     [&](const auto&) { ++called; });
    client.tier->Put(TestKey(1), {}, [&](const auto&) { ++called; });  // Refused, later.
    client.tier.reset();
  });
  client.loop->Run([] {});
  EXPECT_EQ(called, 0);
}

TEST_F(RemoteTierTest, WrongAddressesAreRefused) {
  struct Case {
    const char* address;
    const char* want;
  };
  const std::string long_path = "unix:/" + std::string(200, 'x');
  for (const Case& c :
       {Case{"", "there is no port"}, Case{"unix:", "the path is empty"},
        Case{long_path.c_str(), "at most 107 bytes, got 201"},
        Case{"localhost", "there is no port"}, Case{"localhost:0", "from 1 to 65535"},
        Case{"localhost:65536", "from 1 to 65535"}, Case{"localhost:12x", "from 1 to 65535"},
        Case{":6379", "no host"}}) {
    SCOPED_TRACE(c.address);
    Client client(c.address);
    client.loop->Run([&] {
      const absl::Status status = OpenRedisLink(*client.loop, client.link).status();
      EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
      EXPECT_THAT(status.ToString(), HasSubstr(c.want));
    });
  }
  Client nobody("unix:" + folder_.path() + "/nobody");
  nobody.Open();
  EXPECT_TRUE(absl::IsUnavailable(nobody.Put(1)));
}

TEST(RemoteNameTest, IsSpaceAndChainInHex) {
  BlockKey key;
  key.space.bytes[0] = 0xab;
  key.chain.bytes[15] = 0x01;
  EXPECT_EQ(RemoteName(key), "penstock:1:ab000000000000000000000000000000" +
                                 std::string("00000000000000000000000000000001"));
}

}  // namespace
}  // namespace penstock::kvstore
