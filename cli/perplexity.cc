// SPDX-License-Identifier: Apache-2.0
#include "engine/perplexity.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/prompt.h"
#include "cli/terminal.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

constexpr std::int32_t kContextTokens = 2048;
constexpr std::int32_t kLogitRows = 64;

struct PerplexityFlags {
  ModelFlags model;
  std::string file;
  std::int32_t stride = 0;
  bool json = false;
};

absl::StatusOr<int> Perplexity(const PerplexityFlags& flags) {
  ASSIGN_OR_RETURN(const std::string text, ReadText(std::nullopt, flags.file, "the text"));
  RETURN_IF_ERROR(CheckPrompt(text, "the text"));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, OpenModel(flags.model));
  const std::vector<TokenId> tokens = model->tokenizer().Encode(text, {});
  ASSIGN_OR_RETURN(engine::LocalModel::Options options, MakeOptions(flags.model));
  if (options.memory.context_tokens == 0) {
    options.memory.context_tokens =
        std::min(kContextTokens, model->architecture().context_tokens_max);
  }
  const std::int32_t context = options.memory.context_tokens;
  const std::int32_t stride = flags.stride > 0 ? flags.stride : std::max(context / 2, 1);
  options.memory.logit_rows = kLogitRows;
  InterruptWatch interrupts;  // Until here Ctrl-C just ends the program.
  RETURN_IF_ERROR(LoadModel(*model, options));

  ProgressLine progress;
  const absl::StatusOr<engine::Perplexity> result =
      engine::ScoreText(*model, tokens, context, stride, [&](std::int64_t done) {
        progress.Update("scoring", static_cast<std::size_t>(done), tokens.size());
        return !interrupts.Requested();
      });
  progress.Clear();
  if (absl::IsCancelled(result.status())) return kExitInterrupted;
  RETURN_IF_ERROR(result.status());
  if (flags.json) {
    const nlohmann::ordered_json object = {{"perplexity", result->perplexity},
                                           {"tokens", tokens.size()},
                                           {"scored_tokens", result->scored_tokens},
                                           {"context_tokens", context},
                                           {"stride", stride}};
    WriteStdout(object.dump() + "\n");
  } else {
    WriteStdout(absl::StrFormat("perplexity %.4f over %d tokens\n", result->perplexity,
                                result->scored_tokens));
  }
  return kExitOk;
}

}  // namespace

void RegisterPerplexity(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<PerplexityFlags>();
  CLI::App* perplexity =
      app.add_subcommand("perplexity", "Measure how well a model predicts a text");
  perplexity->add_option("FILE", flags->file, "The text, \"-\" is standard input")->required();
  perplexity->add_flag("--json", flags->json,
                       "Print one object with perplexity, tokens (of the text), scored_tokens");
  perplexity
      ->add_option("--stride", flags->stride,
                   "Tokens from one window to the next (default: half of the context)")
      ->check(CLI::PositiveNumber);
  AddModelFlag(*perplexity, flags->model);
  AddEngineFlags(*perplexity, flags->model);
  AddGpuFlags(*perplexity, flags->model);
  AddSplitFlags(*perplexity, flags->model);
  perplexity->footer(
      "Example:\n"
      "  penstock perplexity --model smollm2 book.txt\n\n"
      "Every token but the first is scored once, given the tokens before it; the result is exp of\n"
      "the mean negative log-likelihood. A text of up to --context-tokens (default: the model's, "
      "up\n"
      "to 2048) is one window, so that each token is given all before it. A longer text is cut "
      "into\n"
      "windows that begin every --stride tokens; a token counts in the first window that has it.\n"
      "The numbers of other programs differ where they leave tokens out or cut differently.");
  perplexity->callback([flags, &run] { run = [flags] { return Perplexity(*flags); }; });
}

}  // namespace penstock::cli
