// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>
#include <string>
#include <thread>
#include <vector>

namespace penstock {
namespace {

// What `log` writes to stderr.
template <typename F>
std::string Captured(F log) {
  testing::internal::CaptureStderr();
  log();
  return testing::internal::GetCapturedStderr();
}

// What follows the time and the level of one line.
std::string Event(LogField field) {
  const std::string line = Captured([&] { LOG_ERROR("event", {field}); });
  const std::size_t begin = line.find(" E event ");
  return begin == std::string::npos ? line : line.substr(begin + 9);
}

TEST(LogTest, AnEventIsOneLineWithTimeLevelAndFields) {
  SetLogLevel(LogLevel::kInfo);
  const std::string line = Captured([] {
    LOG_INFO("model loaded", {{"model", "a.gguf"}, {"bytes", 12345678901}, {"ratio", 0.5}});
  });
  const std::regex want(
      "\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z I model loaded model=a\\.gguf "
      "bytes=12345678901 ratio=0\\.5\n");
  EXPECT_TRUE(std::regex_match(line, want)) << line;
}

TEST(LogTest, NothingBelowTheLevelIsPrinted) {
  const LogLevel levels[] = {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning,
                             LogLevel::kError};
  for (const LogLevel least : levels) {
    SetLogLevel(least);
    for (const LogLevel level : levels) {
      const std::string line = Captured([&] { Log(level, "event", {}); });
      EXPECT_EQ(line.empty(), level < least) << line;
    }
  }
  SetLogLevel(LogLevel::kOff);
  EXPECT_EQ(Captured([] { LOG_ERROR("event", {}); }), "");
}

TEST(LogTest, ValuesThatAreNotPlainAreQuoted) {
  SetLogLevel(LogLevel::kWarning);
  struct Case {
    std::string value;
    const char* want;
  };
  for (const Case& c : {
           Case{"plain/value-1.gguf", "key=plain/value-1.gguf\n"},
           Case{"", "key=\"\"\n"},
           Case{"two words", "key=\"two words\"\n"},
           Case{"say \"hi\"", "key=\"say \\\"hi\\\"\"\n"},
           Case{"back\\slash", "key=\"back\\\\slash\"\n"},
           Case{"x=1", "key=\"x=1\"\n"},
           Case{"two\nlines", "key=\"two\\nlines\"\n"},
           Case{"\x1b[31mred\r", "key=\"\\x1b[31mred\\x0d\"\n"},
           Case{std::string("nul\0", 4), "key=\"nul\\x00\"\n"},
           Case{"\x7f", "key=\"\\x7f\"\n"},
           Case{"{} %s \xc3\xa9", "key=\"{} %s \xc3\xa9\"\n"},
       }) {
    EXPECT_EQ(Event({"key", c.value}), c.want);
  }
}

TEST(LogTest, ThreadsDoNotMixTheirLines) {
  SetLogLevel(LogLevel::kWarning);
  const std::string value(200, 'v');
  const std::string text = Captured([&] {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 100; ++i) LOG_WARNING("event", {{"value", value}});
      });
    }
  });
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 400);
  const std::string want = " W event value=" + value + "\n";
  std::size_t lines = 0;
  for (std::size_t at = text.find(want); at != std::string::npos; at = text.find(want, at + 1)) {
    ++lines;
  }
  EXPECT_EQ(lines, 400u);
}

}  // namespace
}  // namespace penstock
