// SPDX-License-Identifier: Apache-2.0
#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "engine/philox.h"

namespace penstock::engine {
namespace {

constexpr std::uint32_t kDrawStream = 0;  // Of UniformAt: the draw itself is all there is so far.

bool ChangesLogits(const SamplingParams& params) {
  return !params.logit_bias.empty() || params.repetition_penalty != 1 ||
         params.presence_penalty != 0 || params.frequency_penalty != 0;
}

// The row with bias and penalties in it.
std::vector<float> AdjustedLogits(std::span<const float> logits, const SamplingParams& params,
                                  std::span<const TokenId> prompt,
                                  std::span<const TokenId> answer) {
  std::vector<float> row(logits.begin(), logits.end());
  const auto in_row = [&row](TokenId token) {
    return token >= 0 && static_cast<std::size_t>(token) < row.size();
  };
  const auto set = [&row](TokenId token, double value) {
    row[token] = static_cast<float>(std::clamp<double>(value, -FLT_MAX, FLT_MAX));
  };
  for (const auto& [token, bias] : params.logit_bias) {
    if (in_row(token) && std::isfinite(row[token])) set(token, row[token] + bias);
  }
  struct Seen {
    bool anywhere = false;
    std::uint32_t in_answer = 0;
  };
  std::vector<Seen> seen(row.size());
  std::vector<TokenId> distinct;
  const auto note = [&](TokenId token, std::uint32_t in_answer) {
    if (!in_row(token)) return;
    if (!seen[token].anywhere) distinct.push_back(token);
    seen[token].anywhere = true;
    seen[token].in_answer += in_answer;
  };
  for (const TokenId token : prompt) note(token, 0);
  for (const TokenId token : answer) note(token, 1);
  for (const TokenId token : distinct) {
    if (!std::isfinite(row[token])) continue;
    double value = row[token];
    value = value > 0 ? value / params.repetition_penalty : value * params.repetition_penalty;
    if (const std::uint32_t count = seen[token].in_answer; count > 0) {
      value -= params.presence_penalty + params.frequency_penalty * count;
    }
    set(token, value);
  }
  return row;
}

kernels::DrawSpec SpecOf(const SamplingParams& params, std::int32_t choice, std::int32_t position) {
  kernels::DrawSpec spec = {.temperature = params.temperature, .top_logits = params.logprobs};
  if (params.temperature == 0) return spec;
  spec.top_k = params.top_k;
  spec.top_p = params.top_p;
  spec.min_p = params.min_p;
  spec.typical_p = params.typical_p;
  spec.uniform = UniformAt(params.seed, choice, position, kDrawStream);
  return spec;
}

}  // namespace

absl::Status SamplingParams::Validate(std::int32_t vocab) const {
  std::vector<std::string> faults;
  // Written so that NaN is a fault.
  const auto check = [&faults](bool good, std::string_view field, double value,
                               std::string_view limits) {
    if (!good) {
      faults.push_back(absl::StrCat(ToAbsl(field), " is ", value, ", must be ", ToAbsl(limits)));
    }
  };
  check(temperature >= 0 && temperature <= 100, "temperature", temperature, "0 to 100");
  check(top_k >= 0, "top_k", top_k, "0 (off) or more");
  check(top_p > 0 && top_p <= 1, "top_p", top_p, "above 0, up to 1 (off)");
  check(min_p >= 0 && min_p <= 1, "min_p", min_p, "0 (off) to 1");
  check(typical_p > 0 && typical_p <= 1, "typical_p", typical_p, "above 0, up to 1 (off)");
  check(repetition_penalty > 0 && repetition_penalty <= 10, "repetition_penalty",
        repetition_penalty, "above 0, up to 10; 1 is off");
  check(presence_penalty >= -2 && presence_penalty <= 2, "presence_penalty", presence_penalty,
        "-2 to 2");
  check(frequency_penalty >= -2 && frequency_penalty <= 2, "frequency_penalty", frequency_penalty,
        "-2 to 2");
  check(logprobs >= -1 && logprobs <= 20, "logprobs", logprobs, "-1 (none) to 20");
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab) {
      faults.push_back(
          absl::StrCat("logit_bias names token ", token, ", the vocabulary has 0 to ", vocab - 1));
    }
    if (!(bias >= -100 && bias <= 100)) {
      faults.push_back(
          absl::StrCat("logit_bias of token ", token, " is ", bias, ", must be -100 to 100"));
    }
    if (faults.size() > 32) {  // A hostile map must not make a hostile message.
      faults.push_back("and perhaps more");
      break;
    }
  }
  if (faults.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(faults, "; "));
}

bool NeedsRow(const SamplingParams& params) {
  return ChangesLogits(params) || (params.temperature > 0 && params.typical_p < 1);
}

kernels::RowDraw ToRowDraw(const TokenDraw& draw) {
  return {draw.row, SpecOf(*draw.params, draw.choice, draw.position)};
}

absl::StatusOr<SampledToken> ToSampled(const kernels::Drawn& drawn, const SamplingParams& params) {
  if (drawn.token < 0) {
    return absl::InternalError(
        absl::StrCat("the model gave no usable logits: the largest is ", drawn.max));
  }
  SampledToken sampled = {.token = drawn.token, .logprob = std::nullopt, .top = {}};
  if (params.logprobs < 0) return sampled;
  const double log_sum = std::log(drawn.exp_sum) + double{drawn.max};
  sampled.logprob = drawn.logit - log_sum;
  for (const kernels::Candidate& c :
       std::span(drawn.top).first(static_cast<std::size_t>(drawn.top_count))) {
    sampled.top.push_back({c.token, c.logit - log_sum});
  }
  return sampled;
}

absl::StatusOr<SampledToken> SampleToken(std::span<const float> logits,
                                         const SamplingParams& params,
                                         std::span<const TokenId> prompt,
                                         std::span<const TokenId> answer, std::int32_t choice,
                                         std::int32_t position) {
  kernels::DrawSpec spec = SpecOf(params, choice, position);
  if (!ChangesLogits(params)) return ToSampled(kernels::Draw(logits, spec), params);
  spec.top_logits = -1;
  kernels::Drawn drawn = kernels::Draw(AdjustedLogits(logits, params, prompt, answer), spec);
  if (drawn.token >= 0 && params.logprobs >= 0) {
    const TokenId token = drawn.token;
    drawn = kernels::Draw(logits, {.top_logits = params.logprobs});
    drawn.token = token;
    drawn.logit = logits[static_cast<std::size_t>(token)];
  }
  return ToSampled(drawn, params);
}

void SampleToken(std::span<const float> logits, TokenDraw& draw) {
  draw.sampled =
      SampleToken(logits, *draw.params, draw.prompt, draw.answer, draw.choice, draw.position);
}

double UniformAt(std::uint64_t seed, std::int32_t choice, std::int32_t position,
                 std::uint32_t stream) {
  const std::array<std::uint32_t, 4> words = Philox4x32(
      {static_cast<std::uint32_t>(choice), static_cast<std::uint32_t>(position), stream, 0},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  const std::uint64_t bits = std::uint64_t{words[1]} << 32 | words[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace penstock::engine
