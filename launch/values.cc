// SPDX-License-Identifier: Apache-2.0
#include "launch/values.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "launch/yaml.h"

namespace penstock::launch {
namespace {

bool ParseDigits(std::string_view text, std::int64_t* value) {
  if (text.empty() || text[0] == '-') return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

absl::Status Wanted(std::string_view what, std::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat("must be ", ToAbsl(what), ", got ", Quoted(got)));
}

struct Unit {
  std::string_view name;
  double factor;
};

// A decimal number, maybe with a point, and one of the units behind it.
std::optional<double> ParseWithUnit(std::string_view text, std::span<const Unit> units) {
  const std::size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  double number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + digits, number, std::chars_format::fixed);
  if (digits == 0 || error != std::errc() || end != text.data() + digits) return std::nullopt;
  std::string_view unit = text.substr(digits);
  if (unit.starts_with(' ')) unit.remove_prefix(1);
  for (const Unit& known : units) {
    if (known.name == unit) return number * known.factor;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::int64_t> ParseCount(std::string_view text, std::int64_t least,
                                        std::int64_t most) {
  std::int64_t value = 0;
  if (!ParseDigits(text, &value) || value < least || value > most) {
    return Wanted(absl::StrCat("a whole number from ", least, " to ", most), text);
  }
  return value;
}

absl::StatusOr<std::int64_t> ParseBytes(std::string_view text) {
  static constexpr Unit kUnits[] = {
      {"", 1},      {"B", 1},      {"kB", 1e3},      {"MB", 1e6},         {"GB", 1e9},
      {"TB", 1e12}, {"KiB", 1024}, {"MiB", 1048576}, {"GiB", 1073741824}, {"TiB", 1099511627776}};
  constexpr double kBytesMax = 1e15;  // Far above any machine, far below what a double loses.
  const std::optional<double> bytes = ParseWithUnit(text, kUnits);
  if (!bytes || *bytes < 1 || *bytes > kBytesMax) {
    return Wanted("a size from 1 to 1e15 bytes, such as 512MiB or 2GB", text);
  }
  return static_cast<std::int64_t>(*bytes);
}

absl::StatusOr<Duration> ParseDuration(std::string_view text) {
  static constexpr Unit kUnits[] = {
      {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {"m", 6e10}, {"h", 3.6e12}};
  constexpr double kNanosMax = 24 * 3.6e12;
  const std::optional<double> nanos = ParseWithUnit(text, kUnits);
  if (!nanos || *nanos < 1e3 || *nanos > kNanosMax) {
    return Wanted("a time from 1us to 24h with its unit, such as 200ms or 1.5s", text);
  }
  return Duration(static_cast<std::int64_t>(*nanos));
}

absl::StatusOr<std::vector<int>> ParseCpus(std::string_view text) {
  const std::string wanted =
      absl::StrCat("CPU numbers below ", kCpusMax, ", each once, such as 0,2,4-7");
  std::vector<int> cpus;
  std::vector<bool> seen(kCpusMax);
  for (const absl::string_view piece : absl::StrSplit(ToAbsl(text), ',')) {
    const std::pair<absl::string_view, absl::string_view> range =
        absl::StrSplit(piece, absl::MaxSplits('-', 1));
    std::int64_t first = 0, last = 0;
    bool good = ParseDigits(ToStd(range.first), &first);
    last = first;
    if (piece.find('-') != absl::string_view::npos) {
      good = good && ParseDigits(ToStd(range.second), &last);
    }
    if (!good || last < first || last >= kCpusMax) return Wanted(wanted, text);
    for (std::int64_t cpu = first; cpu <= last; ++cpu) {
      if (seen[static_cast<std::size_t>(cpu)]) return Wanted(wanted, text);
      seen[static_cast<std::size_t>(cpu)] = true;
      cpus.push_back(static_cast<int>(cpu));
    }
  }
  return cpus;
}

std::string CpusToString(const std::vector<int>& cpus) {
  std::string text;
  for (std::size_t i = 0; i < cpus.size();) {
    std::size_t last = i;
    while (last + 1 < cpus.size() && cpus[last + 1] == cpus[last] + 1) ++last;
    absl::StrAppend(&text, text.empty() ? "" : ",", cpus[i]);
    if (last > i) absl::StrAppend(&text, "-", cpus[last]);
    i = last + 1;
  }
  return text;
}

bool IsNumericAddress(const std::string& text) {
  unsigned char bytes[sizeof(in6_addr)];
  return ::inet_pton(AF_INET, text.c_str(), bytes) == 1 ||
         ::inet_pton(AF_INET6, text.c_str(), bytes) == 1;
}

}  // namespace penstock::launch
