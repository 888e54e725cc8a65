// SPDX-License-Identifier: Apache-2.0
#include "cli/quality_measure.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>

#include "base/check.h"
#include "base/sha256.h"
#include "base/status.h"
#include "cli/quality_needle.h"
#include "cli/quality_recode.h"
#include "device/cpu_info.h"
#include "engine/divergence.h"
#include "engine/given_text.h"
#include "engine/memory_plan.h"

namespace penstock::cli {
namespace {

using engine::Divergence;
using engine::GivenText;
using kvstore::CodecQuality;
using Progress = absl::FunctionRef<bool(std::string_view what, std::size_t done, std::size_t all)>;

constexpr std::int32_t kTokensMax = 1 << 20;
constexpr std::int32_t kNeedlesMax = 1000;
constexpr std::int32_t kLogitRows = 64;

absl::Status CheckTokens(std::string_view what, std::int32_t tokens, std::int32_t block_tokens) {
  RETURN_IF_ERROR(CheckRange(what, tokens, block_tokens, kTokensMax));
  if (tokens % block_tokens == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(what), " must be whole blocks of ",
                                                 block_tokens, " tokens, got ", tokens));
}

absl::Status CheckOptions(const QualityOptions& options, std::int32_t block_tokens) {
  RETURN_IF_ERROR(CheckTokens("prompt tokens", options.prompt_tokens, block_tokens));
  RETURN_IF_ERROR(CheckRange("scored tokens", options.scored_tokens, 1, kTokensMax));
  RETURN_IF_ERROR(CheckRange("needles", options.needles, 0, kNeedlesMax));
  if (options.needles == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckTokens("needle tokens", options.needle_tokens, block_tokens));
  return CheckRange("needle tokens", options.needle_tokens, kNeedlePromptTokensMin, kTokensMax);
}

// One codec, over all that is measured.
struct Subject {
  Subject(engine::KvPool& pool, kvstore::CodecId id)
      : codec(kvstore::CodecOf(id)), recoder(pool, codec) {}
  const kvstore::Codec& codec;
  Recoder recoder;
  CodecQuality quality;
  NeedleTally needles;
  absl::Status refusal;
};

class Measurement {
 public:
  Measurement(engine::LocalModel& model, const QualityOptions& options, Progress progress)
      : model_(model), options_(options), progress_(progress) {}

  absl::StatusOr<QualityResult> Run(std::string_view text);

 private:
  // CANCELLED where the caller does not want to go on.
  absl::Status Step(std::string_view what);
  absl::Status ScoreAll(std::span<const TokenId> tokens);
  // Goes on behind a copy of the prompt; `seen` are the tokens it gets, `next` those it should have
  // said.
  absl::StatusOr<engine::DivergenceSummary> Score(GivenText& copy, std::span<const TokenId> seen,
                                                  std::span<const TokenId> next);
  absl::Status ScoreSubject(const GivenText& prompt, std::span<const TokenId> seen,
                            std::span<const TokenId> next, Subject& subject);
  // Scores what ScoreAll did with F16, to compare.
  absl::Status ScoreF16(std::span<const TokenId> prompt, std::span<const TokenId> seen,
                        std::span<const TokenId> next);
  absl::Status FindNeedles(std::span<const TokenId> tokens);
  absl::Status FindNeedle(std::int32_t i, const NeedlePrompt& needle);
  // What `subject` refuses is kept, all else is an error.
  static absl::Status KeepRefusal(absl::Status status, Subject& subject);
  kvstore::QualityRecord Record(std::string_view text) const;
  bool IsF16() const { return model_.options().memory.kv_dtype == KvDtype::kF16; }

  engine::LocalModel& model_;
  const QualityOptions& options_;
  const Progress progress_;
  std::size_t done_ = 0;
  std::unique_ptr<engine::KvPool> pool_;
  std::unique_ptr<engine::StepRunner> pass_;
  std::vector<std::unique_ptr<Subject>> subjects_;
  std::vector<float> full_logits_;  // [scored_tokens, vocab]
  double full_perplexity_ = 0, last_bit_kl_ = 0;
  std::optional<engine::DivergenceSummary> against_f16_;
  NeedleTally full_needles_;
};

absl::Status Measurement::Step(std::string_view what) {
  const std::size_t rounds = 1 + static_cast<std::size_t>(options_.needles);
  const std::size_t all =
      rounds * (2 + options_.codecs.size()) + 1 + (IsF16() ? std::size_t{0} : std::size_t{1});
  return progress_(what, done_++, all) ? absl::OkStatus() : absl::CancelledError("interrupted");
}

absl::Status Measurement::KeepRefusal(absl::Status status, Subject& subject) {
  if (!absl::IsInvalidArgument(status)) return status;
  subject.refusal = std::move(status);
  return absl::OkStatus();
}

absl::StatusOr<engine::DivergenceSummary> Measurement::Score(GivenText& copy,
                                                             std::span<const TokenId> seen,
                                                             std::span<const TokenId> next) {
  const auto vocab = static_cast<std::size_t>(model_.architecture().vocab);
  const std::int32_t begin = copy.position();
  std::vector<Divergence> positions(seen.size());
  RETURN_IF_ERROR(copy.ScoreAtOnce(seen, [&](std::int32_t position, std::span<const float> logits) {
    const auto i = static_cast<std::size_t>(position - begin);
    positions[i] =
        engine::Compare(std::span(full_logits_).subspan(i * vocab, vocab), logits, next[i]);
  }));
  const engine::DivergenceSummary summary = engine::Summarize(positions);
  if (std::isfinite(summary.mean_kl)) return summary;
  return absl::InternalError("the model gave logits that are not finite");
}

absl::Status Measurement::ScoreSubject(const GivenText& prompt, std::span<const TokenId> seen,
                                       std::span<const TokenId> next, Subject& subject) {
  GivenText copy(*pass_, *pool_);
  const absl::Status copied = subject.recoder.Copy(prompt, copy);
  if (!copied.ok()) return KeepRefusal(copied, subject);
  ASSIGN_OR_RETURN(const engine::DivergenceSummary summary, Score(copy, seen, next));
  subject.quality = {.codec = subject.codec.id(),
                     .version = subject.codec.version(),
                     .bits_per_value = subject.recoder.bits_per_value(),
                     .mean_kl = summary.mean_kl,
                     .median_kl = summary.median_kl,
                     .p99_kl = summary.p99_kl,
                     .max_kl = summary.max_kl,
                     .top1 = summary.top1,
                     .perplexity = summary.q_perplexity,
                     .encode_gbps = subject.recoder.encode_gbps(),
                     .decode_gbps = subject.recoder.decode_gbps()};
  return absl::OkStatus();
}

absl::Status Measurement::ScoreAll(std::span<const TokenId> tokens) {
  const auto prompt_tokens = static_cast<std::size_t>(options_.prompt_tokens);
  const auto scored_tokens = static_cast<std::size_t>(options_.scored_tokens);
  RETURN_IF_ERROR(Step("computing the prompt"));
  GivenText prompt(*pass_, *pool_);
  RETURN_IF_ERROR(prompt.Feed(tokens.first(prompt_tokens)));
  const std::span<const TokenId> seen = tokens.subspan(prompt_tokens, scored_tokens);
  const std::span<const TokenId> next = tokens.subspan(prompt_tokens + 1, scored_tokens);

  RETURN_IF_ERROR(Step("scoring the full cache"));
  const auto vocab = static_cast<std::size_t>(model_.architecture().vocab);
  full_logits_.resize(scored_tokens * vocab);
  {
    GivenText full(*pass_, *pool_);
    full.ShareFrom(prompt);
    RETURN_IF_ERROR(
        full.ScoreAtOnce(seen, [&](std::int32_t position, std::span<const float> logits) {
          const auto i = static_cast<std::size_t>(position - options_.prompt_tokens);
          std::ranges::copy(logits, full_logits_.begin() + static_cast<std::ptrdiff_t>(i * vocab));
        }));
  }
  RETURN_IF_ERROR(Step("scoring copies of other last bits"));
  {
    Recoder recoder(*pool_, kvstore::CodecOf(kvstore::CodecId::kRaw));
    GivenText copy(*pass_, *pool_);
    RETURN_IF_ERROR(recoder.Copy(prompt, copy));
    FlipLastBits(*pool_, copy);
    ASSIGN_OR_RETURN(const engine::DivergenceSummary summary, Score(copy, seen, next));
    last_bit_kl_ = summary.mean_kl;
    full_perplexity_ = summary.p_perplexity;
  }
  for (const std::unique_ptr<Subject>& subject : subjects_) {
    RETURN_IF_ERROR(Step(absl::StrCat("scoring ", ToAbsl(kvstore::ToString(subject->codec.id())))));
    RETURN_IF_ERROR(ScoreSubject(prompt, seen, next, *subject));
  }
  if (!IsF16()) RETURN_IF_ERROR(ScoreF16(tokens.first(prompt_tokens), seen, next));
  full_logits_ = {};
  return absl::OkStatus();
}

absl::Status Measurement::ScoreF16(std::span<const TokenId> prompt, std::span<const TokenId> seen,
                                   std::span<const TokenId> next) {
  RETURN_IF_ERROR(Step("scoring with f16 KV"));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::KvPool> pool, model_.MakePool(KvDtype::kF16));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::StepRunner> pass, model_.MakeRunner(*pool));
  GivenText text(*pass, *pool);
  RETURN_IF_ERROR(text.Feed(prompt));
  const auto vocab = static_cast<std::size_t>(model_.architecture().vocab);
  std::vector<Divergence> positions(seen.size());
  RETURN_IF_ERROR(text.ScoreAtOnce(seen, [&](std::int32_t position, std::span<const float> logits) {
    const std::size_t i = static_cast<std::size_t>(position) - prompt.size();
    positions[i] =
        engine::Compare(logits, std::span(full_logits_).subspan(i * vocab, vocab), next[i]);
  }));
  against_f16_ = engine::Summarize(positions);
  if (std::isfinite(against_f16_->mean_kl)) return absl::OkStatus();
  return absl::InternalError("the model gave logits that are not finite");
}

absl::Status Measurement::FindNeedle(std::int32_t i, const NeedlePrompt& needle) {
  const std::string number = absl::StrCat("needle ", i + 1, ": ");
  RETURN_IF_ERROR(Step(absl::StrCat(number, "computing the prompt")));
  GivenText prompt(*pass_, *pool_);
  RETURN_IF_ERROR(prompt.Feed(needle.prompt));
  RETURN_IF_ERROR(Step(absl::StrCat(number, "asking the full cache")));
  GivenText full(*pass_, *pool_);
  full.ShareFrom(prompt);
  ASSIGN_OR_RETURN(const NeedleAnswer right, AskForNeedle(full, needle));
  full_needles_.Add(right, right);
  for (const std::unique_ptr<Subject>& subject : subjects_) {
    RETURN_IF_ERROR(
        Step(absl::StrCat(number, "asking ", ToAbsl(kvstore::ToString(subject->codec.id())))));
    if (!subject->refusal.ok()) continue;
    GivenText copy(*pass_, *pool_);
    RETURN_IF_ERROR(KeepRefusal(subject->recoder.Copy(prompt, copy), *subject));
    if (!subject->refusal.ok()) continue;
    ASSIGN_OR_RETURN(const NeedleAnswer answer, AskForNeedle(copy, needle));
    subject->needles.Add(answer, right);
  }
  return absl::OkStatus();
}

absl::Status Measurement::FindNeedles(std::span<const TokenId> tokens) {
  for (std::int32_t i = 0; i < options_.needles; ++i) {
    ASSIGN_OR_RETURN(
        const NeedlePrompt needle,
        MakeNeedlePrompt(model_.tokenizer(), tokens, options_.needle_tokens, i, options_.needles));
    RETURN_IF_ERROR(FindNeedle(i, needle));
  }
  return absl::OkStatus();
}

kvstore::QualityRecord Measurement::Record(std::string_view text) const {
  const NamespaceFields fields = model_.namespace_fields();
  kvstore::QualityRecord record;
  record.model = fields.model;
  record.weights = fields.weights;
  record.numerics = fields.numerics;
  record.kv_dtype = model_.options().memory.kv_dtype;
  record.cpu = Describe(ThisCpu());
  record.text_sha256 = ToHex(Sha256Of(text.data(), text.size()));
  record.block_tokens = pool_->block_tokens();
  record.prompt_tokens = options_.prompt_tokens;
  record.scored_tokens = options_.scored_tokens;
  record.perplexity = full_perplexity_;
  record.last_bit_kl = last_bit_kl_;
  if (options_.needles > 0) {
    record.needles = options_.needles;
    record.needle_tokens = options_.needle_tokens;
    record.needles_correct = full_needles_.correct();
    record.needle_nll = full_needles_.mean_nll();
  }
  return record;
}

absl::StatusOr<QualityResult> Measurement::Run(std::string_view text) {
  const std::vector<TokenId> tokens = model_.tokenizer().Encode(text, {.parse_special = false});
  // One more, to have seen what the last one should have been.
  const std::int64_t want =
      std::max<std::int64_t>(std::int64_t{options_.prompt_tokens} + options_.scored_tokens + 1,
                             options_.needles > 0 ? options_.needle_tokens : 0);
  if (static_cast<std::int64_t>(tokens.size()) < want) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", tokens.size(), " tokens, ", want, " are needed"));
  }
  const std::size_t logits_bytes = static_cast<std::size_t>(options_.scored_tokens) *
                                   static_cast<std::size_t>(model_.architecture().vocab) *
                                   sizeof(float);
  if (const std::size_t left = engine::AvailableBytes(); logits_bytes > left) {
    return absl::ResourceExhaustedError(absl::StrCat("the logits of ", options_.scored_tokens,
                                                     " scored tokens take ", logits_bytes,
                                                     " bytes; ", left, " are left"));
  }
  ASSIGN_OR_RETURN(pool_, model_.MakePool());
  ASSIGN_OR_RETURN(pass_, model_.MakeRunner(*pool_));
  for (const kvstore::CodecId id : options_.codecs) {
    subjects_.push_back(std::make_unique<Subject>(*pool_, id));
  }
  RETURN_IF_ERROR(ScoreAll(tokens));
  RETURN_IF_ERROR(FindNeedles(tokens));
  QualityResult result{Record(text), {}, against_f16_};
  for (const std::unique_ptr<Subject>& subject : subjects_) {
    if (!subject->refusal.ok()) {
      result.refusals.emplace_back(subject->refusal.message());
      continue;
    }
    if (options_.needles > 0) {
      subject->quality.needles_correct = subject->needles.correct();
      subject->quality.needle_nll = subject->needles.mean_nll();
    }
    result.record.codecs.push_back(subject->quality);
  }
  return result;
}

}  // namespace

engine::LocalModel::Options ForQuality(engine::LocalModel::Options options,
                                       const QualityOptions& quality) {
  options.for_peers = true;  // For the digest of the weights.
  engine::MemoryRequest& memory = options.memory;
  memory.sequences = 2;  // The prompt's own blocks and the copy.
  memory.logit_rows = std::min(kLogitRows, memory.chunk_tokens);
  if (memory.context_tokens == 0) {
    const std::int32_t needle =
        quality.needles > 0 ? quality.needle_tokens + kNeedleAnswerTokensMax : 0;
    memory.context_tokens = std::max(quality.prompt_tokens + quality.scored_tokens, needle);
  }
  return options;
}

absl::StatusOr<QualityResult> MeasureQuality(engine::LocalModel& model, std::string_view text,
                                             const QualityOptions& options, Progress progress) {
  RETURN_IF_ERROR(CheckOptions(options, model.options().memory.block_tokens));
  CHECK(!options.codecs.empty());
  return Measurement(model, options, progress).Run(text);
}

}  // namespace penstock::cli
