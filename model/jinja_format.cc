// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/jinja_builtins.h"
#include "model/jinja_strings.h"

namespace penstock::model {
namespace {

// %.3f and its like; -1 digits: 6.
std::string Fixed(double value, int digits) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[512];  // 1e308 has 309 digits, and at most 100 follow.
  std::snprintf(buffer, sizeof(buffer), "%.*f", digits < 0 ? 6 : digits, value);
  return buffer;
}

// `text` in a field of `width` characters.
Value AppendPadded(JinjaRuntime* runtime, std::string_view text, std::size_t width, bool left,
                   char fill, std::string* out) {
  constexpr std::size_t kWidthMax = 10'000;
  if (width > kWidthMax) return runtime->FailExhausted(absl::StrCat("a field of ", width));
  const std::size_t size = CountCharacters(text);
  const std::size_t missing = width > size ? width - size : 0;
  if (!runtime->WorkOnBytes(text.size() + missing)) return Undefined{};
  if (out->size() > JinjaRuntime::kTextBytesMax) return Undefined{};
  if (!left) {
    const bool sign = fill == '0' && !text.empty() && text[0] == '-';
    if (sign) {
      out->push_back('-');
      text.remove_prefix(1);
    }
    out->append(missing, fill);
  }
  out->append(text);
  if (left) out->append(missing, ' ');
  return Undefined{};
}

std::size_t ReadNumber(std::string_view format, std::size_t* at) {
  std::size_t number = 0;
  while (*at < format.size() && format[*at] >= '0' && format[*at] <= '9') {
    if (number < 1'000'000) number = number * 10 + static_cast<std::size_t>(format[*at] - '0');
    ++*at;
  }
  return number;
}

// One value by its conversion letter.
std::string Convert(JinjaRuntime* runtime, char conversion, int digits, const Value& v) {
  switch (conversion) {
    case 's': {
      std::string text = ToPrinted(runtime, v);
      if (digits >= 0) text.resize(ByteOffset(text, static_cast<std::size_t>(digits)));
      return text;
    }
    case 'r':
      return ToRepr(runtime, v);
    case 'd':
    case 'i':
      if (IsInteger(v)) return absl::StrCat(IntegerOf(v));
      if (IsFloat(v) && std::abs(FloatOf(v)) < 9e18) {
        return absl::StrCat(static_cast<std::int64_t>(FloatOf(v)));
      }
      break;
    case 'f':
      if (IsNumber(v) && digits <= 100) return Fixed(FloatOf(v), digits);
      break;
    default:
      break;
  }
  runtime->Fail(absl::StrCat("format %", std::string(1, conversion), " of a ", TypeName(v),
                             " is not supported"));
  return {};
}

}  // namespace

Value PercentFormat(JinjaRuntime* runtime, std::string_view format, const Value& values) {
  const SequenceObject* tuple = SequenceOf(values);
  if (tuple != nullptr && tuple->kind != SequenceObject::Kind::kTuple) tuple = nullptr;
  const std::size_t count = tuple != nullptr ? tuple->items.size() : 1;
  std::size_t used = 0;
  std::string out;
  for (std::size_t at = 0; at < format.size() && !runtime->failed();) {
    if (format[at] != '%') {
      out.push_back(format[at++]);
      continue;
    }
    ++at;
    if (format.substr(at, 1) == "%") {
      out.push_back('%');
      ++at;
      continue;
    }
    const bool left = format.substr(at, 1) == "-";
    if (left) ++at;
    const char fill = format.substr(at, 1) == "0" && !left ? '0' : ' ';
    const std::size_t width = ReadNumber(format, &at);
    int digits = -1;
    if (format.substr(at, 1) == ".") {
      ++at;
      digits = static_cast<int>(ReadNumber(format, &at));
    }
    if (at >= format.size()) return runtime->Fail("incomplete format");
    if (used >= count) return runtime->Fail("not enough arguments for format string");
    const Value& value = tuple != nullptr ? tuple->items[used] : values;
    ++used;
    const std::string text = Convert(runtime, format[at], digits, value);
    const bool number = format[at] != 's' && format[at] != 'r';
    AppendPadded(runtime, text, width, left, number ? fill : ' ', &out);
    ++at;
  }
  // A single value that is a dict may go unused, as in Python.
  if (used < count && !(tuple == nullptr && DictOf(values) != nullptr)) {
    return runtime->Fail("not all arguments converted during string formatting");
  }
  return runtime->NewString(std::move(out));
}

Value BraceFormat(JinjaRuntime* runtime, std::string_view format, const JinjaArgs& args) {
  std::string out;
  std::size_t next = 0;
  for (std::size_t at = 0; at < format.size() && !runtime->failed(); ++at) {
    const char c = format[at];
    if (c != '{' && c != '}') {
      out.push_back(c);
      continue;
    }
    if (format.substr(at + 1, 1) == std::string_view(&c, 1)) {
      out.push_back(c);
      ++at;
      continue;
    }
    const std::size_t end = c == '{' ? format.find('}', at) : std::string_view::npos;
    if (end == std::string_view::npos) return runtime->Fail("a single brace in a format string");
    std::string_view field = format.substr(at + 1, end - at - 1);
    at = end;
    int digits = -1;
    const std::size_t colon = field.find(':');
    if (colon != std::string_view::npos) {
      const std::string_view spec = field.substr(colon + 1);  // Only {:.2f} and its like.
      std::size_t i = 1;
      if (spec.substr(0, 1) == ".") digits = static_cast<int>(ReadNumber(spec, &i));
      if (digits < 0 || i < 2 || spec.substr(i) != "f") {
        return runtime->Fail(absl::StrCat("format {:", ToAbsl(spec), "} is not supported"));
      }
      field = field.substr(0, colon);
    }
    const Value* value = nullptr;
    std::size_t digits_end = 0;
    const std::size_t number = ReadNumber(field, &digits_end);
    if (field.empty()) {
      value = next < args.positional.size() ? &args.positional[next] : nullptr;
      ++next;
    } else if (digits_end == field.size()) {
      value = number < args.positional.size() ? &args.positional[number] : nullptr;
    } else {
      value = args.Get(args.positional.size(), field);
    }
    if (value == nullptr) {
      return runtime->Fail(absl::StrCat("format has no argument '", ToAbsl(field), "'"));
    }
    const std::string text = Convert(runtime, digits < 0 ? 's' : 'f', digits, *value);
    AppendPadded(runtime, text, 0, false, ' ', &out);
  }
  return runtime->NewString(std::move(out));
}

Value FormatTime(JinjaRuntime* runtime, std::string_view format, std::int64_t unix_seconds) {
  constexpr std::int64_t kSecondsMax = 253'402'300'799;  // The end of year 9999.
  if (unix_seconds < 0 || unix_seconds > kSecondsMax) {
    return runtime->Fail(absl::StrCat("time ", unix_seconds, " is not from 0 to ", kSecondsMax));
  }
  static constexpr const char* kDays[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                          "Thursday", "Friday", "Saturday"};
  static constexpr const char* kMonths[] = {"January",   "February", "March",    "April",
                                            "May",       "June",     "July",     "August",
                                            "September", "October",  "November", "December"};
  const std::chrono::sys_days day(std::chrono::days(unix_seconds / 86400));
  const std::chrono::year_month_day date(day);
  const int of_day = static_cast<int>(unix_seconds % 86400);
  const int hour = of_day / 3600;
  const int minute = of_day / 60 % 60;
  const int year = static_cast<int>(date.year());
  const unsigned month = static_cast<unsigned>(date.month());
  const unsigned of_month = static_cast<unsigned>(date.day());
  const unsigned weekday = std::chrono::weekday(day).c_encoding();
  const auto day_of_year =
      (day - std::chrono::sys_days(date.year() / std::chrono::January / 1)).count() + 1;
  std::string out;
  const auto number = [&out](auto value, int digits, bool pad) {
    char buffer[24];
    std::snprintf(buffer, sizeof(buffer), "%0*d", pad ? digits : 1, static_cast<int>(value));
    out += buffer;
  };
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out.push_back(format[i]);
      continue;
    }
    const bool pad = format[++i] != '-';
    if (!pad && ++i == format.size()) break;
    const std::string_view month_name = kMonths[month - 1];
    const std::string_view day_name = kDays[weekday];
    switch (format[i]) {
      case 'Y':
        number(year, 4, pad);
        break;
      case 'y':
        number(year % 100, 2, pad);
        break;
      case 'm':
        number(month, 2, pad);
        break;
      case 'd':
        number(of_month, 2, pad);
        break;
      case 'e':
        out += of_month < 10 ? " " : "";
        number(of_month, 1, false);
        break;
      case 'j':
        number(day_of_year, 3, pad);
        break;
      case 'H':
        number(hour, 2, pad);
        break;
      case 'I':
        number((hour + 11) % 12 + 1, 2, pad);
        break;
      case 'M':
        number(minute, 2, pad);
        break;
      case 'S':
        number(of_day % 60, 2, pad);
        break;
      case 'p':
        out += hour < 12 ? "AM" : "PM";
        break;
      case 'B':
        out += month_name;
        break;
      case 'b':
        out += month_name.substr(0, 3);
        break;
      case 'A':
        out += day_name;
        break;
      case 'a':
        out += day_name.substr(0, 3);
        break;
      case '%':
        out += '%';
        break;
      default:
        return runtime->Fail(
            absl::StrCat("strftime_now: %", std::string(1, format[i]), " is not supported"));
    }
  }
  return runtime->NewString(std::move(out));
}

}  // namespace penstock::model
