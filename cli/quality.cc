// SPDX-License-Identifier: Apache-2.0
// penstock quality: what codecs of the KV store cost in quality, measured and recorded.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "cli/bench_run_client.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_store.h"
#include "cli/prompt.h"
#include "cli/quality_measure.h"
#include "cli/quality_report.h"
#include "cli/store_codecs.h"
#include "cli/terminal.h"

namespace penstock::cli {
namespace {

// Newton's Opticks (1704, public domain), where Debian has it.
constexpr char kTextPackage[] = "golang-github-andybalholm-brotli-dev";
constexpr char kTextFile[] =
    "/usr/share/gocode/src/github.com/andybalholm/brotli/testdata/Isaac.Newton-Opticks.txt";
constexpr std::size_t kTextBytesMax = std::size_t{64} << 20;
// More tells the tokenizer's work from nothing: a token has seldom fewer than two bytes.
constexpr std::size_t kTokenBytesMax = 16;

struct QualityFlags {
  ModelFlags model;
  QualityOptions options;
  std::vector<std::string> codecs;
  std::string text;
  std::string json;
  std::string picture;
};

absl::StatusOr<std::string> TextOf(const QualityFlags& flags) {
  absl::StatusOr<std::string> text =
      ReadFile(flags.text.empty() ? kTextFile : flags.text, kTextBytesMax);
  if (flags.text.empty() && absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat(
        "no text to measure with: give one of some 20 kB or more with --text FILE, or install "
        "Debian's ",
        kTextPackage, ", which has Newton's Opticks"));
  }
  RETURN_IF_ERROR(text.status());
  RETURN_IF_ERROR(CheckPrompt(*text, "the text"));
  // The rest would be tokenized for nothing.
  const auto tokens = static_cast<std::size_t>(flags.options.prompt_tokens) +
                      static_cast<std::size_t>(flags.options.scored_tokens) +
                      static_cast<std::size_t>(flags.options.needle_tokens);
  const std::size_t bytes = kTokenBytesMax * tokens;
  if (text->size() > bytes) text->resize(bytes);
  return text;
}

absl::StatusOr<std::vector<kvstore::CodecId>> CodecsOf(const std::vector<std::string>& names,
                                                       KvDtype dtype) {
  std::vector<kvstore::CodecId> codecs;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const kvstore::CodecId id, kvstore::ParseCodecId(name));
    RETURN_IF_ERROR(kvstore::CheckTakes(id, dtype));
    if (std::ranges::find(codecs, id) == codecs.end()) codecs.push_back(id);
  }
  if (!codecs.empty()) return codecs;
  for (const kvstore::CodecId id : kvstore::AllCodecs()) {
    if (kvstore::CheckTakes(id, dtype).ok()) codecs.push_back(id);
  }
  return codecs;
}

absl::StatusOr<int> Quality(QualityFlags flags) {
  ASSIGN_OR_RETURN(const engine::LocalModel::Options options, MakeOptions(flags.model));
  ASSIGN_OR_RETURN(flags.options.codecs, CodecsOf(flags.codecs, options.memory.kv_dtype));
  ASSIGN_OR_RETURN(const std::string text, TextOf(flags));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, OpenModel(flags.model));
  InterruptWatch interrupts;  // Until here Ctrl-C just ends the program.
  RETURN_IF_ERROR(LoadModel(*model, ForQuality(options, flags.options)));

  ProgressLine progress;
  const absl::StatusOr<QualityResult> result = MeasureQuality(
      *model, text, flags.options, [&](std::string_view what, std::size_t done, std::size_t all) {
        progress.Update(what, done, all);
        return !interrupts.Requested();
      });
  progress.Clear();
  if (absl::IsCancelled(result.status())) return kExitInterrupted;
  RETURN_IF_ERROR(result.status());
  const std::string path = model->file().path();
  const std::string name = path.substr(path.rfind('/') + 1);
  std::string out = QualityText(name, result->record);
  for (const std::string& refusal : result->refusals) {
    absl::StrAppend(&out, "not measured: ", refusal, "\n");
  }
  if (result->against_f16.has_value()) {
    absl::StrAppend(&out, AgainstF16Text(result->record, *result->against_f16));
  }
  const std::string record =
      flags.json.empty() ? QualityRecordPath(path, result->record.weights, result->record.kv_dtype)
                         : flags.json;
  WriteStdout(out);
  RETURN_IF_ERROR(WriteWholeFile(record, ToJson(result->record)));
  if (!flags.picture.empty()) {
    RETURN_IF_ERROR(WriteWholeFile(flags.picture, QualitySvg(name, result->record)));
  }
  WriteStdout(absl::StrCat("record: ", record, "\n"));
  return kExitOk;
}

}  // namespace

void RegisterQuality(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<QualityFlags>();
  CLI::App* const sub = app.add_subcommand(
      "quality", "Measure what codecs of the KV store cost in quality, and record it");
  sub->add_option("MODEL", flags->model.model,
                  "A GGUF file, a Hugging Face folder, or the name of a model that `penstock model "
                  "get` fetched (default: smollm2)");
  sub->add_option("--codecs", flags->codecs, "Only these, such as int8,kivi4")->delimiter(',');
  sub->add_option("--text", flags->text,
                  "What to read; UTF-8 (default: Newton's Opticks, where Debian's "
                  "golang-github-andybalholm-brotli-dev is installed)");
  sub->add_option("--prompt-tokens", flags->options.prompt_tokens,
                  "Tokens whose blocks go through the codec, a multiple of --block-tokens")
      ->capture_default_str();
  sub->add_option("--tokens", flags->options.scored_tokens, "Tokens scored behind them")
      ->capture_default_str();
  sub->add_option("--needles", flags->options.needles,
                  "Prompts with a number hidden in them, from their beginning to their end")
      ->capture_default_str();
  sub->add_option("--needle-tokens", flags->options.needle_tokens, "Tokens of each of those")
      ->capture_default_str();
  sub->add_option("--json", flags->json,
                  "Where the record is written (default: beside the model, as "
                  "quality-WEIGHTS-DTYPE.json, where deployments find it)");
  sub->add_option("--picture", flags->picture, "Draw quality against bytes to this SVG file");
  AddEngineFlags(*sub, flags->model);
  sub->footer(
      "Example:\n"
      "  penstock quality smollm2 --picture quality.svg\n\n"
      "Every codec encodes and decodes the blocks of one long prompt. The tokens that follow in "
      "the\n"
      "text are then scored behind the copies and behind the full cache: the mean, median, 99th\n"
      "percentile and maximum of the Kullback-Leibler divergence, how often the likeliest token is "
      "the\n"
      "same, and perplexity. Copies of a mean KL of up to 0.005 are of class kl3, of up to 0.05 of "
      "kl2.\n"
      "Lossless codecs must give 0: the divergence is computed in float64 from logits that are the "
      "same\n"
      "bits. --activations f32 leaves out what rounding activations to int8 adds to any change of "
      "the\n"
      "cache; the table has that as the KL of other last bits alone. The prompt is the text's "
      "first "
      "tokens.\n"
      "With another --kv-dtype than f16 a last line has what that costs itself, against f16.");
  sub->callback([flags, &run] { run = [flags] { return Quality(*flags); }; });
}

}  // namespace penstock::cli
