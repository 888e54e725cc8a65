// SPDX-License-Identifier: Apache-2.0
// Logs are events with fields, one per state change, none per token:
//   LOG_INFO("model loaded", {{"model", path}, {"bytes", weights_bytes}});
// prints   2026-11-22T01:02:03.456Z I model loaded model=... bytes=...
// A value with a space, quote, backslash, '=' or control character in it is quoted and escaped, so
// every event is one line. Lines go to stderr; stdout belongs to the program's
// output. Any thread may log.
#pragma once

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace penstock {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// Below `level` nothing is printed. The default is kWarning, so that a command's output is its own.
void SetLogLevel(LogLevel level);

struct LogField {
  LogField(std::string_view key_in, std::string_view value_in) : key(key_in), value(value_in) {}
  template <typename T>
  requires(std::integral<T> || std::floating_point<T>) LogField(std::string_view key_in, T value_in)
      : key(key_in), value(absl::StrCat(value_in)) {}

  std::string_view key;
  std::string value;
};

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields);

}  // namespace penstock

#define LOG_DEBUG(...) ::penstock::Log(::penstock::LogLevel::kDebug, __VA_ARGS__)
#define LOG_INFO(...) ::penstock::Log(::penstock::LogLevel::kInfo, __VA_ARGS__)
#define LOG_WARNING(...) ::penstock::Log(::penstock::LogLevel::kWarning, __VA_ARGS__)
#define LOG_ERROR(...) ::penstock::Log(::penstock::LogLevel::kError, __VA_ARGS__)
