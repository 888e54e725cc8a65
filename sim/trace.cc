// SPDX-License-Identifier: Apache-2.0
#include "sim/trace.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "nlohmann/json.hpp"

namespace penstock::sim {
namespace {

constexpr std::int64_t kTokensMax = std::int64_t{1} << 24;
constexpr std::int64_t kMillisMax = std::int64_t{7} * 24 * 3600 * 1000;

absl::StatusOr<std::int64_t> Number(const nlohmann::json& object, const char* field,
                                    std::int64_t min, std::int64_t max) {
  const auto found = object.find(field);
  if (found == object.end() || !found->is_number_integer()) {
    return absl::InvalidArgumentError(absl::StrCat(field, " must be an integer"));
  }
  const auto value = found->get<std::int64_t>();
  RETURN_IF_ERROR(CheckRange(field, value, min, max));
  return value;
}

absl::StatusOr<TraceRequest> ParseLine(const std::string& line) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  TraceRequest request;
  ASSIGN_OR_RETURN(const std::int64_t millis, Number(object, "timestamp", 0, kMillisMax));
  request.at = std::chrono::milliseconds(millis);
  ASSIGN_OR_RETURN(const std::int64_t input, Number(object, "input_length", 1, kTokensMax));
  request.input_tokens = static_cast<std::uint32_t>(input);
  ASSIGN_OR_RETURN(const std::int64_t output, Number(object, "output_length", 0, kTokensMax));
  request.output_tokens = static_cast<std::uint32_t>(std::max<std::int64_t>(1, output));
  const auto ids = object.find("hash_ids");
  if (ids == object.end() || !ids->is_array()) {
    return absl::InvalidArgumentError("hash_ids must be an array");
  }
  for (const nlohmann::json& id : *ids) {
    if (!id.is_number_unsigned()) {
      return absl::InvalidArgumentError("hash_ids must be numbers from 0");
    }
    request.blocks.push_back(id.get<std::uint64_t>());
  }
  return request;
}

}  // namespace

absl::StatusOr<std::vector<TraceRequest>> ReadTrace(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot open '", path, "'"));
  std::vector<TraceRequest> trace;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    absl::StatusOr<TraceRequest> request = ParseLine(line);
    if (!request.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ", line ", number, ": ", request.status().message()));
    }
    trace.push_back(*std::move(request));
  }
  std::ranges::stable_sort(trace, {}, &TraceRequest::at);
  return trace;
}

std::vector<TraceRequest> MakeTrace(std::size_t requests, std::uint64_t seed) {
  struct Conversation {
    std::uint32_t tokens = 0;
    std::vector<std::uint64_t> blocks;
  };
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<> share;
  std::lognormal_distribution<> first(std::log(7500), 0.8);  // Medians in tokens.
  std::lognormal_distribution<> turn(std::log(700), 1.0);
  std::lognormal_distribution<> answer(std::log(300), 0.6);
  std::vector<Duration> arrivals;
  for (std::size_t i = 0; i < requests; ++i) {
    arrivals.push_back(std::chrono::milliseconds(static_cast<std::int64_t>(share(random) * 3.6e6)));
  }
  std::ranges::sort(arrivals);
  std::vector<TraceRequest> trace;
  std::vector<Conversation> open;
  std::uint64_t next_block = 1;
  for (const Duration at : arrivals) {
    Conversation talk;
    if (!open.empty() && share(random) < 0.6) {
      const std::size_t i = random() % open.size();
      talk = std::move(open[i]);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
      talk.tokens += static_cast<std::uint32_t>(turn(random)) + 1;
    } else {
      talk.tokens = static_cast<std::uint32_t>(first(random)) + 1;
      talk.blocks.push_back(0);
    }
    talk.tokens = std::min<std::uint32_t>(talk.tokens, 120'000);
    const std::size_t blocks = (talk.tokens + kTraceBlockTokens - 1) / kTraceBlockTokens;
    while (talk.blocks.size() < blocks) talk.blocks.push_back(next_block++);
    TraceRequest request{.at = at, .input_tokens = talk.tokens, .blocks = talk.blocks};
    request.output_tokens =
        std::clamp<std::uint32_t>(static_cast<std::uint32_t>(answer(random)), 1, 2000);
    // What comes back has the answer behind it, and another partial block.
    talk.blocks.resize(talk.tokens / kTraceBlockTokens);
    talk.tokens += request.output_tokens;
    trace.push_back(std::move(request));
    open.push_back(std::move(talk));
    if (open.size() > 200) open.erase(open.begin());
  }
  return trace;
}

}  // namespace penstock::sim
