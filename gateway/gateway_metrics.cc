// SPDX-License-Identifier: Apache-2.0
#include "gateway/gateway_metrics.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"

namespace penstock::gateway {

// One request. On the gateway's loop.
class GatewayMetrics::WatchedSink final : public Sink {
 public:
  WatchedSink(std::shared_ptr<Sink> sink, OfModel& metrics, const Slo& slo, const Loop& loop,
              MonoTime arrived)
      : sink_(std::move(sink)), metrics_(metrics), slo_(slo), loop_(loop), arrived_(arrived) {
    metrics_.started.Add();
  }

  bool OnEvent(Event event) override {
    if (const auto* const delta = std::get_if<Delta>(&event)) {
      OnTokens(delta->choice, delta->tokens.size());
    } else if (const auto* const finished = std::get_if<Finished>(&event)) {
      OnFinished(finished->choice);
    } else if (const auto* const usage = std::get_if<Usage>(&event)) {
      OnUsage(*usage);
    }
    return sink_->OnEvent(std::move(event));
  }

  void OnEnd(const absl::Status& status, Duration retry_after) override {
    const auto code = static_cast<std::size_t>(status.code());
    metrics_.ended[std::min(code, kCodes - 1)].Add();
    metrics_.live_ended.Add();
    if (status.ok()) metrics_.e2e.Observe(ToSeconds(loop_.Now() - arrived_));
    if (status.ok() && good_) metrics_.good.Add();
    sink_->OnEnd(status, retry_after);
  }

 private:
  struct Choice {
    std::uint64_t tokens = 0;
    MonoTime first, last;
  };

  void OnTokens(std::int32_t choice, std::size_t tokens) {
    if (tokens == 0) return;
    const MonoTime now = loop_.Now();
    if (!std::exchange(answered_, true)) {
      metrics_.ttft.Observe(ToSeconds(now - arrived_));
      Keep(now - arrived_, slo_.ttft);
    }
    Choice& of = choices_[choice];
    std::uint64_t gaps = tokens;
    if (of.tokens == 0) {
      of.first = now;
      --gaps;
    } else {
      metrics_.itl.Observe(ToSeconds(now - of.last));
      --gaps;
    }
    if (gaps > 0) metrics_.itl.Observe(0, gaps);  // They came together.
    of.tokens += tokens;
    of.last = now;
  }

  void OnFinished(std::int32_t choice) {
    const Choice& of = choices_[choice];
    if (of.tokens < 2) return;
    metrics_.tpot.Observe(ToSeconds(of.last - of.first) / static_cast<double>(of.tokens - 1));
    Keep((of.last - of.first) / static_cast<std::int64_t>(of.tokens - 1), slo_.tpot);
  }

  void Keep(Duration took, Duration at_most) {
    good_ = good_ && (at_most == Duration{} || took <= at_most);
  }

  void OnUsage(const Usage& usage) {
    metrics_.prompt_tokens.Add(static_cast<std::uint64_t>(usage.prompt_tokens));
    metrics_.cached_tokens.Add(static_cast<std::uint64_t>(usage.cached_tokens));
    metrics_.completion_tokens.Add(static_cast<std::uint64_t>(usage.completion_tokens));
    metrics_.attempts.Add(usage.attempts);
  }

  const std::shared_ptr<Sink> sink_;  // The client's; see Gateway::Submit.
  OfModel& metrics_;
  const Slo& slo_;
  const Loop& loop_;
  const MonoTime arrived_;
  bool answered_ = false;
  bool good_ = true;
  std::map<std::int32_t, Choice> choices_;
};

GatewayMetrics::GatewayMetrics(const std::vector<std::string>& models, const Slo& slo) : slo_(slo) {
  models_[""] = std::make_unique<OfModel>();
  for (const std::string& model : models) models_[model] = std::make_unique<OfModel>();
}

GatewayMetrics::~GatewayMetrics() = default;

GatewayMetrics::OfModel& GatewayMetrics::Of(const std::string& model) {
  // A request that names none means the only one.
  if (model.empty() && models_.size() == 2) return *models_.rbegin()->second;
  const auto at = models_.find(model);
  return *(at == models_.end() ? models_.begin() : at)->second;
}

std::shared_ptr<Sink> GatewayMetrics::Watch(std::shared_ptr<Sink> sink, const std::string& model,
                                            const Loop& loop, MonoTime arrived) {
  return std::make_shared<WatchedSink>(std::move(sink), Of(model), slo_, loop, arrived);
}

void GatewayMetrics::Write(MetricsWriter& writer) const {
  for (const auto& [name, of] : models_) {
    const MetricLabels labels = {{"model", name}};
    const auto count = [&](std::string_view metric, std::string_view help, const Counter& counter) {
      writer.Counter(metric, help, static_cast<double>(counter.value()), labels);
    };
    // Ends first: a request that ends in between must not count as less than none.
    const std::uint64_t ended = of->live_ended.value();
    writer.Gauge("penstock_gateway_requests_live", "Requests that have not ended",
                 static_cast<double>(of->started.value() - ended), labels);
    for (std::size_t code = 0; code < kCodes; ++code) {
      const std::uint64_t n = of->ended[code].value();
      if (n == 0 && code != 0) continue;
      const std::string text =
          absl::AsciiStrToLower(absl::StatusCodeToString(static_cast<absl::StatusCode>(code)));
      writer.Counter("penstock_gateway_requests_total", "Requests that have ended, by status code",
                     static_cast<double>(n), {{"model", name}, {"code", text}});
    }
    count("penstock_gateway_prompt_tokens_total", "Prompt tokens of complete answers",
          of->prompt_tokens);
    count("penstock_gateway_cached_tokens_total", "Of those, tokens whose KV was reused",
          of->cached_tokens);
    count("penstock_gateway_completion_tokens_total", "Tokens of complete answers",
          of->completion_tokens);
    count("penstock_gateway_attempts_total",
          "Plans that complete answers took; above their number where workers were lost",
          of->attempts);
    count("penstock_gateway_good_total",
          "Complete answers that kept to the SLO; all of them where there is none", of->good);
    writer.Histogram("penstock_gateway_ttft_seconds", "Arrival to first token", of->ttft, labels);
    writer.Histogram("penstock_gateway_tpot_seconds",
                     "Time per token of an answer after its first, on average", of->tpot, labels);
    writer.Histogram("penstock_gateway_itl_seconds", "Each gap between two tokens", of->itl,
                     labels);
    writer.Histogram("penstock_gateway_e2e_seconds", "Arrival to the end of complete answers",
                     of->e2e, labels);
  }
}

}  // namespace penstock::gateway
