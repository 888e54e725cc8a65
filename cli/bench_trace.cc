// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_trace.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "model/json.h"

namespace penstock::cli {
namespace {

constexpr std::size_t kLineBytesMax = std::size_t{4} << 20;
constexpr std::size_t kHashIdsMax = kBenchTokensMax / kMooncakeBlockTokens;
constexpr double kSecondsMax = 1e9;  // Some thirty years.
constexpr absl::string_view kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

absl::StatusOr<std::int32_t> GetTokens(const model::Json& line, std::string_view field,
                                       std::int32_t least) {
  ASSIGN_OR_RETURN(const std::int32_t tokens, model::GetJsonInt(line, field));
  RETURN_IF_ERROR(CheckRange(field, tokens, least, kBenchTokensMax));
  return tokens;
}

absl::StatusOr<BenchRequest> ParseMooncake(std::string_view text) {
  ASSIGN_OR_RETURN(const model::Json line,
                   model::ParseJsonObject(text, "the line", kLineBytesMax, kHashIdsMax + 64));
  BenchRequest request;
  const model::Json* const timestamp = model::Member(line, "timestamp");
  if (timestamp == nullptr || !timestamp->is_number()) {
    return absl::InvalidArgumentError("timestamp must be a number of milliseconds");
  }
  const double seconds = timestamp->get<double>() / 1000;
  if (!(seconds >= 0 && seconds <= kSecondsMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("timestamp must be from 0 to ", kSecondsMax * 1000, ", got ", seconds * 1000));
  }
  request.arrival = FromSeconds(seconds);
  ASSIGN_OR_RETURN(request.prompt_tokens, GetTokens(line, "input_length", 1));
  ASSIGN_OR_RETURN(request.output_tokens, GetTokens(line, "output_length", 0));
  request.output_tokens = std::max(1, request.output_tokens);
  const model::Json* const ids = model::Member(line, "hash_ids");
  const std::int32_t blocks =
      (request.prompt_tokens + kMooncakeBlockTokens - 1) / kMooncakeBlockTokens;
  if (ids == nullptr || !ids->is_array() || ids->size() != static_cast<std::size_t>(blocks)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hash_ids must be a list of ", blocks, ", one for each ", kMooncakeBlockTokens,
        " tokens of input_length, got ",
        ids != nullptr && ids->is_array() ? absl::StrCat(ids->size()) : std::string("none")));
  }
  std::int32_t left = request.prompt_tokens;
  for (const model::Json& id : *ids) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >> 62 != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("hash_ids must be whole numbers below 2^62, got ", model::Brief(id)));
    }
    request.prompt.push_back({id.get<std::uint64_t>(), std::min(left, kMooncakeBlockTokens)});
    left -= request.prompt.back().tokens;
  }
  return request;
}

bool ParseDigits(absl::string_view text, std::size_t digits, std::int64_t most,
                 std::int64_t* value) {
  if (text.size() != digits || !std::all_of(text.begin(), text.end(), absl::ascii_isdigit)) {
    return false;
  }
  return absl::SimpleAtoi(text, value) && *value <= most;
}

// "2023-11-16 18:17:03.9799600" as nanoseconds since 1970; the fraction may have 0 to 9 digits.
absl::StatusOr<Duration> ParseTimestamp(absl::string_view text) {
  const absl::Status wrong = absl::InvalidArgumentError(absl::StrCat(
      "TIMESTAMP must look like 2023-11-16 18:17:03.9799600, got '", text.substr(0, 64), "'"));
  std::int64_t year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0, fraction = 0;
  if (text.size() < 19 || text[4] != '-' || text[7] != '-' || text[10] != ' ' || text[13] != ':' ||
      text[16] != ':' || !ParseDigits(text.substr(0, 4), 4, 9999, &year) ||
      !ParseDigits(text.substr(5, 2), 2, 12, &month) ||
      !ParseDigits(text.substr(8, 2), 2, 31, &day) ||
      !ParseDigits(text.substr(11, 2), 2, 23, &hour) ||
      !ParseDigits(text.substr(14, 2), 2, 59, &minute) ||
      !ParseDigits(text.substr(17, 2), 2, 60, &second)) {
    return wrong;
  }
  if (text.size() > 19) {
    const absl::string_view digits = text.substr(20);
    if (text[19] != '.' || digits.empty() || digits.size() > 9 ||
        !ParseDigits(absl::StrCat(digits, std::string(9 - digits.size(), '0')), 9, 999'999'999,
                     &fraction)) {
      return wrong;
    }
  }
  const std::chrono::year_month_day date{std::chrono::year(static_cast<int>(year)),
                                         std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  // Nanoseconds in 63 bits reach to 2262.
  if (!date.ok() || year < 1970 || year > 2200) return wrong;
  return std::chrono::sys_days(date).time_since_epoch() + std::chrono::hours(hour) +
         std::chrono::minutes(minute) + std::chrono::seconds(second) + Duration(fraction);
}

absl::StatusOr<BenchRequest> ParseAzure(std::string_view text, std::uint64_t number) {
  const std::vector<absl::string_view> fields = absl::StrSplit(ToAbsl(text), ',');
  if (fields.size() != 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("a line has 3 fields (", kAzureHeader, "), got ", fields.size()));
  }
  BenchRequest request;
  ASSIGN_OR_RETURN(request.arrival, ParseTimestamp(fields[0]));
  const auto tokens = [](absl::string_view field, const char* name, std::int32_t least,
                         std::int32_t* out) -> absl::Status {
    if (!absl::SimpleAtoi(field, out)) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " must be a number, got '", field.substr(0, 64), "'"));
    }
    return CheckRange(name, *out, least, kBenchTokensMax);
  };
  RETURN_IF_ERROR(tokens(fields[1], "ContextTokens", 1, &request.prompt_tokens));
  RETURN_IF_ERROR(tokens(fields[2], "GeneratedTokens", 0, &request.output_tokens));
  request.output_tokens = std::max(1, request.output_tokens);
  request.prompt.push_back({number, request.prompt_tokens});
  return request;
}

}  // namespace

absl::StatusOr<std::vector<BenchRequest>> ParseTrace(std::string_view name, std::string_view text,
                                                     std::size_t limit) {
  const auto wrong = [&](std::size_t line, absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(name), ":", line, ": ", why));
  };
  const bool azure = absl::StartsWith(ToAbsl(text), kAzureHeader);
  const std::size_t most = limit == 0 ? kTraceRequestsMax : std::min(limit, kTraceRequestsMax);
  std::vector<BenchRequest> requests;
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < text.size() && requests.size() < most;) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (azure && number == 1)) continue;
    if (line.size() > kLineBytesMax) {
      return wrong(number,
                   absl::StrCat("a line has at most ", kLineBytesMax, " bytes, got ", line.size()));
    }
    if (!azure && line.front() != '{') {
      return wrong(number, absl::StrCat("neither a JSON object (Mooncake's traces), nor is the "
                                        "first line ",
                                        kAzureHeader, " (Azure's)"));
    }
    absl::StatusOr<BenchRequest> request = azure ? ParseAzure(line, number) : ParseMooncake(line);
    if (!request.ok()) return wrong(number, request.status().message());
    requests.push_back(*std::move(request));
  }
  if (requests.empty()) return wrong(std::max<std::size_t>(number, 1), "no request is in it");
  std::ranges::stable_sort(requests, {}, &BenchRequest::arrival);
  const Duration first = requests.front().arrival;
  for (BenchRequest& request : requests) request.arrival -= first;
  return requests;
}

}  // namespace penstock::cli
