// SPDX-License-Identifier: Apache-2.0
#include "kvstore/remote/redis_replies.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::kvstore {
namespace {

using namespace std::string_view_literals;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::size_t kValueMax = 1 << 20;

std::string Show(const RedisReply& reply) {
  switch (reply.kind) {
    case RedisReply::Kind::kStatus:
      return absl::StrCat("+", ToAbsl(reply.text));
    case RedisReply::Kind::kError:
      return absl::StrCat("-", ToAbsl(reply.text));
    case RedisReply::Kind::kInteger:
      return absl::StrCat(":", reply.integer);
    case RedisReply::Kind::kNil:
      return "nil";
    case RedisReply::Kind::kValue:
      break;
  }
  return absl::StrCat(
      "$", std::string(reinterpret_cast<const char*>(reply.value.data()), reply.value.size()));
}

struct Heard {
  absl::Status status;
  std::vector<std::string> replies;
};

// In pieces of so many bytes.
Heard Hear(std::string_view text, std::size_t piece_bytes) {
  Heard heard;
  RedisReplies replies(kValueMax, [&](const RedisReply& reply) {
    heard.replies.push_back(Show(reply));
    return absl::OkStatus();
  });
  while (!text.empty() && heard.status.ok()) {
    heard.status = replies.Feed(std::as_bytes(std::span(text.substr(0, piece_bytes))));
    text.remove_prefix(std::min(piece_bytes, text.size()));
  }
  return heard;
}

TEST(RedisRepliesTest, HearsThemHoweverTheyAreCut) {
  const std::string_view text =
      "+OK\r\n-ERR no\r\n:42\r\n:-1\r\n$-1\r\n$0\r\n\r\n$5\r\na\r\nbc\r\n+\r\n$2\r\n\0\n\r\n$9\r\n12"sv;
  for (std::size_t piece = 1; piece <= text.size(); ++piece) {
    SCOPED_TRACE(piece);
    const Heard heard = Hear(text, piece);
    EXPECT_TRUE(heard.status.ok()) << heard.status;
    EXPECT_THAT(heard.replies, ElementsAre("+OK", "-ERR no", ":42", ":-1", "nil", "$", "$a\r\nbc",
                                           "+", std::string("$\0\n", 3)));
  }
}

TEST(RedisRepliesTest, RefusesWhatNoServerShouldSay) {
  const std::string long_line(10'000, 'x');
  struct Case {
    const char* name;
    std::string text;
    const char* want;
  };
  for (const Case& c : {
           Case{"other protocol", "HTTP/1.1 400 Bad Request\r\n", "Protocol error"},
           Case{"array", "*2\r\n:1\r\n:2\r\n", "an array of 2"},
           Case{"huge array", "*2147483647\r\n", "an array of 2147483647"},
           Case{"no number", ":12x\r\n", "Bad integer value"},
           Case{"length that is none", "$abc\r\n", "Bad bulk string length"},
           Case{"negative length", "$-2\r\n", "Bulk string length out of range"},
           Case{"too long, before it is sent", "$1048577\r\n", "1048577 bytes, of at most 1048576"},
           Case{"longest length", "$9223372036854775807\r\n", "of at most 1048576"},
           Case{"a line without end", "+" + long_line, "a line of more than 4096 bytes"},
           Case{"a length without end", "$" + std::string(10'000, '1'), "a line of more than"},
       }) {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, std::size_t{1} << 20}) {
      SCOPED_TRACE(absl::StrCat(c.name, " by ", piece));
      const Heard heard = Hear(c.text, piece);
      EXPECT_TRUE(absl::IsInvalidArgument(heard.status)) << heard.status;
      EXPECT_THAT(heard.status.ToString(), HasSubstr(c.want));
      EXPECT_THAT(heard.replies, ElementsAre());
    }
  }
}

TEST(RedisRepliesTest, EndsWithWhatTheListenerSays) {
  int calls = 0;
  RedisReplies replies(kValueMax, [&](const RedisReply&) {
    return ++calls == 2 ? absl::AbortedError("enough") : absl::OkStatus();
  });
  const std::string_view text = "+a\r\n+b\r\n+c\r\n";
  EXPECT_TRUE(absl::IsAborted(replies.Feed(std::as_bytes(std::span(text)))));
  EXPECT_TRUE(absl::IsAborted(replies.Feed(std::as_bytes(std::span(text)))));
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace penstock::kvstore
