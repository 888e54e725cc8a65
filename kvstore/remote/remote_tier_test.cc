// SPDX-License-Identifier: Apache-2.0
// The remote tier with servers that misbehave.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/remote/remote_tier_testing.h"

namespace penstock::kvstore {
namespace {

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
