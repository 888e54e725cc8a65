// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <algorithm>
#include <memory>

#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace penstock {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      return spdlog::level::off;
  }
  return spdlog::level::off;
}

spdlog::logger& Logger() {
  static const std::shared_ptr<spdlog::logger> logger = [] {
    auto made = std::make_shared<spdlog::logger>(
        "penstock", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %^%L%$ %v", spdlog::pattern_time_type::utc);
    made->set_level(spdlog::level::warn);
    return made;
  }();
  return *logger;
}

// Plain where that is clear, else quoted. Values come from files and clients: no control character
// of theirs reaches the terminal.
void AppendValue(std::string_view value, std::string& line) {
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (!value.empty() && value.find_first_of(" \"\\=") == std::string_view::npos &&
      std::none_of(value.begin(), value.end(), control)) {
    line.append(value);
    return;
  }
  constexpr char kDigits[] = "0123456789abcdef";
  line.push_back('"');
  for (const char c : value) {
    if (c == '\n') {
      line.append("\\n");
    } else if (control(c)) {
      line.append("\\x").append({kDigits[c >> 4], kDigits[c & 15]});
    } else {
      if (c == '"' || c == '\\') line.push_back('\\');
      line.push_back(c);
    }
  }
  line.push_back('"');
}

}  // namespace

void SetLogLevel(LogLevel level) { Logger().set_level(ToSpdlog(level)); }

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  const spdlog::level::level_enum spdlog_level = ToSpdlog(level);
  if (!Logger().should_log(spdlog_level)) return;
  std::string line(event);
  for (const LogField& field : fields) {
    line.append(" ").append(field.key).append("=");
    AppendValue(field.value, line);
  }
  Logger().log(spdlog_level, "{}", line);
}

}  // namespace penstock
