// SPDX-License-Identifier: Apache-2.0
#include "cli/answer.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/time.h"
#include "model/text_stream.h"

namespace penstock::cli {
namespace {

using Emit = absl::FunctionRef<bool(std::int32_t, std::string_view)>;

// Collects what the engine reports about one request.
class Collector {
 public:
  Collector(engine::Engine& engine, Emit emit) : engine_(engine), emit_(emit) {}

  absl::Status Start(const model::Tokenizer& tokenizer, const engine::Request& request,
                     const std::vector<std::string>& stops) {
    wants_logprobs_ = request.sampling.logprobs >= 0;
    for (std::int32_t choice = 0; choice < request.n; ++choice) {
      model::TextStream::Options options;
      options.stops = stops;
      if (!request.prompt.empty()) options.after = request.prompt.back();
      ASSIGN_OR_RETURN(streams_.emplace_back(), model::TextStream::Make(tokenizer, options));
    }
    answers_.choices.resize(streams_.size());
    answers_.prompt_tokens = static_cast<std::int32_t>(request.prompt.size());
    unfinished_ = streams_.size();
    started_ = SteadyClock().Now();
    ASSIGN_OR_RETURN(id_, engine_.Submit(request));
    return absl::OkStatus();
  }

  bool done() const { return unfinished_ == 0; }

  void Cancel() {
    if (!cancelled_) engine_.Cancel(id_);
    cancelled_ = true;
  }

  // False when the model broke.
  bool Take(const engine::TokenOutput& output) {
    if (output.request != id_) return true;
    const auto choice = static_cast<std::size_t>(output.choice);
    Answer& answer = answers_.choices[choice];
    if (!answer.finish_reason.empty()) return true;  // Stopped by its text.
    bool stopped = false;
    if (output.token.has_value()) {
      last_ = SteadyClock().Now();
      if (answers_.tokens++ == 0) first_ = last_;
      answer.tokens.push_back(output.token->token);
      if (wants_logprobs_) answer.sampled.push_back(*output.token);
      stopped = Write(choice, streams_[choice]->Add(output.token->token));
    }
    if (stopped) {
      if (!output.finish.has_value()) engine_.StopChoice(id_, output.choice);
      Finish(answer, engine::FinishReason::kStop);
    } else if (output.finish.has_value()) {
      const bool stop_string = Write(choice, streams_[choice]->Finish());
      Finish(answer, stop_string ? engine::FinishReason::kStop : *output.finish);
    }
    return output.finish != engine::FinishReason::kError;
  }

  Answers Result() {
    if (const std::optional<engine::RequestStats> stats = engine_.Stats(id_)) {
      answers_.reused_tokens = stats->reused_tokens;
    }
    if (answers_.tokens > 0) {
      answers_.ttft_ms = ToMillis(first_ - started_);
      const double seconds = ToSeconds(last_ - first_);
      answers_.tokens_per_s = answers_.tokens > 1 && seconds > 0
                                  ? static_cast<double>(answers_.tokens - 1) / seconds
                                  : 1000 / answers_.ttft_ms;
    }
    return std::move(answers_);
  }

 private:
  // Hands text out; whether a stop string was met.
  bool Write(std::size_t choice, const model::TextStream::Output& output) {
    answers_.choices[choice].text += output.text;
    if (!output.text.empty() && !emit_(static_cast<std::int32_t>(choice), output.text)) Cancel();
    return output.stopped;
  }

  void Finish(Answer& answer, engine::FinishReason reason) {
    answer.finish_reason = std::string(ToString(reason));
    --unfinished_;
  }

  engine::Engine& engine_;
  const Emit emit_;
  std::vector<std::unique_ptr<model::TextStream>> streams_;
  Answers answers_;
  engine::RequestId id_{};
  std::size_t unfinished_ = 0;
  bool wants_logprobs_ = false;
  bool cancelled_ = false;
  MonoTime started_, first_, last_;
};

using PieceOf = absl::FunctionRef<std::string(TokenId)>;

nlohmann::ordered_json LogprobsJson(const Answer& answer, PieceOf piece) {
  const auto entry = [&piece](TokenId token, double logprob) {
    return nlohmann::ordered_json{{"token", token}, {"piece", piece(token)}, {"logprob", logprob}};
  };
  auto list = nlohmann::ordered_json::array();
  for (const engine::SampledToken& sampled : answer.sampled) {
    nlohmann::ordered_json item = entry(sampled.token, sampled.logprob.value_or(0));
    item["top"] = nlohmann::ordered_json::array();
    for (const engine::TokenLogprob& top : sampled.top) {
      item["top"].push_back(entry(top.token, top.logprob));
    }
    list.push_back(std::move(item));
  }
  return list;
}

void AddAnswer(const Answer& answer, PieceOf piece, nlohmann::ordered_json& object) {
  object["tokens"] = answer.tokens;
  object["text"] = answer.text;
  object["finish_reason"] = answer.finish_reason;
  if (!answer.sampled.empty()) object["logprobs"] = LogprobsJson(answer, piece);
}

}  // namespace

absl::StatusOr<Answers> RunRequest(engine::Engine& engine, const model::Tokenizer& tokenizer,
                                   const engine::Request& request,
                                   const std::vector<std::string>& stops,
                                   InterruptWatch& interrupts, Emit emit) {
  Collector collector(engine, emit);
  RETURN_IF_ERROR(collector.Start(tokenizer, request, stops));
  while (!collector.done()) {
    if (interrupts.Requested()) collector.Cancel();
    const engine::StepReport report = engine.Step();
    for (const engine::TokenOutput& output : report.outputs) {
      if (!collector.Take(output)) {
        return absl::InternalError(
            "the model gave no usable logits: the file is damaged or not supported");
      }
    }
  }
  return collector.Result();
}

nlohmann::ordered_json ToJson(const Answers& answers, const std::vector<TokenId>& prompt,
                              absl::FunctionRef<std::string(TokenId)> piece) {
  nlohmann::ordered_json object;
  object["prompt_tokens"] = prompt;
  if (answers.choices.size() == 1) {
    AddAnswer(answers.choices[0], piece, object);
  } else {
    object["choices"] = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < answers.choices.size(); ++i) {
      nlohmann::ordered_json choice = {{"index", i}};
      AddAnswer(answers.choices[i], piece, choice);
      object["choices"].push_back(std::move(choice));
    }
  }
  object["ttft_ms"] = answers.ttft_ms;
  object["tokens_per_s"] = answers.tokens_per_s;
  return object;
}

std::string Summary(const Answers& answers) {
  std::string reused;
  if (answers.reused_tokens > 0) reused = absl::StrCat(" (", answers.reused_tokens, " reused)");
  return absl::StrFormat("%d prompt tokens%s, first token after %.0f ms; %d tokens, %.1f tokens/s",
                         answers.prompt_tokens, reused, answers.ttft_ms, answers.tokens,
                         answers.tokens_per_s);
}

}  // namespace penstock::cli
