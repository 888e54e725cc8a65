// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/time.h"
#include "cli/answer.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/inference_client.h"
#include "cli/prompt.h"
#include "cli/terminal.h"
#include "model/chat_prompt.h"

namespace penstock::cli {
namespace {

struct GenerateFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::optional<std::string> prompt;
  std::optional<std::string> prompt_file;
  std::optional<std::string> system;
  bool raw = false;
  std::int32_t n = 1;
  bool json = false;
  bool stats = false;
  std::string reuse = "exact";

  // Text is printed as it comes.
  bool streams() const { return n == 1 && !json; }
};

// A text to go on with, or messages for the chat template.
absl::StatusOr<std::variant<std::string, std::vector<model::ChatMessage>>> ReadPrompt(
    const GenerateFlags& flags, bool has_chat_template) {
  ASSIGN_OR_RETURN(std::string text, ReadText(flags.prompt, flags.prompt_file, "the prompt"));
  RETURN_IF_ERROR(CheckPrompt(text, "the prompt"));
  if (flags.raw || !has_chat_template) {
    if (flags.system.has_value()) {
      return absl::InvalidArgumentError(
          flags.raw ? "--system needs the chat template that --raw leaves out"
                    : "--system needs a chat template; this model has none");
    }
    return text;
  }
  std::vector<model::ChatMessage> messages;
  if (flags.system.has_value()) messages.push_back({"system", *flags.system});
  messages.push_back({"user", std::move(text)});
  return messages;
}

absl::StatusOr<std::vector<TokenId>> EncodePrompt(const engine::LocalModel& model,
                                                  const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(const auto prompt, ReadPrompt(flags, model.has_chat_template()));
  if (const auto* const text = std::get_if<std::string>(&prompt)) {
    return model.tokenizer().Encode(*text, {});
  }
  ASSIGN_OR_RETURN(const model::ChatTemplate* chat_template, model.chat_template());
  return model::EncodeChat(model.tokenizer(), *chat_template,
                           std::get<std::vector<model::ChatMessage>>(prompt), CivilNow());
}

absl::Status CheckFlags(const GenerateFlags& flags) {
  if (flags.sampling.params.logprobs >= 0 && !flags.json) {
    return absl::InvalidArgumentError("--logprobs are printed with --json only");
  }
  if (flags.reuse != "exact" && flags.model.server.empty()) {
    return absl::InvalidArgumentError("--reuse is for a cluster: it needs --server");
  }
  return absl::OkStatus();
}

// Room for the prompt and the answers, unless the flags say how much.
absl::Status PlanContext(const GenerateFlags& flags, std::size_t prompt_tokens,
                         std::int32_t model_context, engine::MemoryRequest* memory) {
  const std::int32_t limit =
      memory->context_tokens > 0 ? std::min(memory->context_tokens, model_context) : model_context;
  if (prompt_tokens > static_cast<std::size_t>(limit)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", prompt_tokens, " tokens, the context ",
        memory->context_tokens > 0 ? "(--context-tokens) " : "of this model ", "is ", limit));
  }
  const auto prompt = static_cast<std::int32_t>(prompt_tokens);
  memory->sequences = flags.n;
  memory->shared_tokens = prompt;
  if (memory->context_tokens == 0) {
    memory->context_tokens = flags.sampling.max_tokens < model_context - prompt
                                 ? prompt + flags.sampling.max_tokens
                                 : model_context;
  }
  return absl::OkStatus();
}

void PrintChoices(const Answers& answers) {
  for (std::size_t i = 0; i < answers.choices.size(); ++i) {
    const std::string& text = answers.choices[i].text;
    WriteStdout(absl::StrCat(ToAbsl(StdoutStyle().bold), "[", i + 1, "]",
                             ToAbsl(StdoutStyle().reset), " ", text,
                             text.ends_with('\n') ? "" : "\n"));
  }
}

// What was not printed while it came.
int PrintAnswers(const GenerateFlags& flags, const Answers& answers,
                 const std::vector<TokenId>& prompt, absl::FunctionRef<std::string(TokenId)> piece,
                 std::uint64_t seed) {
  if (flags.json) {
    WriteStdout(ToJson(answers, prompt, piece)
                    .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
                "\n");
  } else if (flags.streams()) {
    WriteStdout("\n");
  } else {
    PrintChoices(answers);
  }
  if (flags.stats || (!flags.json && StderrIsTerminal())) {
    absl::FPrintF(stderr, "%s%s; seed %d%s\n", ToAbsl(StderrStyle().dim), Summary(answers), seed,
                  ToAbsl(StderrStyle().reset));
  }
  return answers.choices[0].finish_reason == "cancelled" ? kExitInterrupted : kExitOk;
}

absl::StatusOr<int> GenerateHere(const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, OpenModel(flags.model));
  engine::Request request;
  ASSIGN_OR_RETURN(request.sampling, MakeSampling(flags.sampling, model->architecture().vocab));
  ASSIGN_OR_RETURN(const std::vector<TokenId> prompt, EncodePrompt(*model, flags));
  request.prompt = prompt;
  request.n = flags.n;
  request.max_tokens = flags.sampling.max_tokens;
  request.ignore_eos = flags.sampling.ignore_eos;
  ASSIGN_OR_RETURN(engine::LocalModel::Options options, MakeOptions(flags.model));
  RETURN_IF_ERROR(
      PlanContext(flags, prompt.size(), model->architecture().context_tokens_max, &options.memory));
  InterruptWatch interrupts;  // Until here Ctrl-C just ends the program.
  RETURN_IF_ERROR(LoadModel(*model, options));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::Engine> engine, model->MakeEngine());
  ASSIGN_OR_RETURN(const Answers answers,
                   RunRequest(*engine, model->tokenizer(), request, flags.sampling.stops,
                              interrupts, [&flags](std::int32_t, std::string_view text) {
                                return !flags.streams() || WriteStdout(text);
                              }));
  return PrintAnswers(
      flags, answers, prompt,
      [&model](TokenId token) { return model->tokenizer().Piece(token, /*special=*/true); },
      request.sampling.seed);
}

absl::StatusOr<int> GenerateThere(const GenerateFlags& flags) {
  // The server knows its vocabulary.
  ASSIGN_OR_RETURN(const engine::SamplingParams sampling,
                   MakeSampling(flags.sampling, std::numeric_limits<std::int32_t>::max()));
  ASSIGN_OR_RETURN(const LossClass reuse, ParseLossClass(flags.reuse));
  InterruptWatch interrupts;  // Before gRPC makes threads.
  ASSIGN_OR_RETURN(const std::unique_ptr<InferenceClient> client,
                   InferenceClient::Open(flags.model.server, flags.model.model));
  ASSIGN_OR_RETURN(auto prompt, ReadPrompt(flags, client->model().chat));
  ASSIGN_OR_RETURN(const InferenceClient::Reply reply,
                   client->Run({.prompt = std::move(prompt),
                                .sampling = sampling,
                                .n = flags.n,
                                .max_tokens = flags.sampling.max_tokens,
                                .stops = flags.sampling.stops,
                                .ignore_eos = flags.sampling.ignore_eos,
                                .reuse = reuse},
                               interrupts, [&flags](std::int32_t, std::string_view text) {
                                 return !flags.streams() || WriteStdout(text);
                               }));
  return PrintAnswers(
      flags, reply.answers, reply.prompt,
      [&reply](TokenId token) {
        const auto piece = reply.pieces.find(token);
        return piece == reply.pieces.end() ? std::string() : piece->second;
      },
      sampling.seed);
}

absl::StatusOr<int> Generate(const GenerateFlags& flags) {
  RETURN_IF_ERROR(CheckFlags(flags));
  return flags.model.server.empty() ? GenerateHere(flags) : GenerateThere(flags);
}

}  // namespace

void RegisterGenerate(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<GenerateFlags>();
  CLI::App* generate = app.add_subcommand("generate", "Answer one prompt");
  generate->add_option("PROMPT", flags->prompt,
                       "What to answer; without it, --prompt-file or standard input");
  generate->add_option("-f,--prompt-file", flags->prompt_file,
                       "Read the prompt from a file, \"-\" is standard input");
  generate->add_flag("--raw", flags->raw,
                     "Go on with the text itself, without the model's chat template");
  generate->add_option("--system", flags->system, "A system message before the prompt");
  generate->add_option("-n,--n", flags->n, "So many answers, which share the prompt's memory")
      ->capture_default_str()
      ->check(CLI::Range(1, 64));
  generate->add_flag("--json", flags->json, "Print one JSON object when all is done");
  generate
      ->add_option("--logprobs", flags->sampling.params.logprobs,
                   "With --json: log-probability of every token, and of the N most likely (0 "
                   "to 20)")
      ->check(CLI::Range(0, 20));
  generate->add_flag("--stats", flags->stats,
                     "Print speed and seed on stderr even where that is no terminal");
  AddModelFlag(*generate, flags->model);
  AddServerFlag(*generate, flags->model);
  generate
      ->add_option("--reuse", flags->reuse,
                   "With --server: KV of the prompt may come from copies with a loss, up to this "
                   "class: exact (none), kl3 (mean KL up to 0.005) or kl2 (up to 0.05)")
      ->check(CLI::IsMember({"exact", "kl3", "kl2"}))
      ->capture_default_str();
  AddEngineFlags(*generate, flags->model);
  AddGpuFlags(*generate, flags->model);
  AddSplitFlags(*generate, flags->model);
  ServerExcludesTheRest(*generate);
  AddSamplingFlags(*generate, flags->sampling);
  generate->footer(
      "Examples:\n"
      "  penstock generate \"Why is the sky blue?\"\n"
      "  penstock generate --system \"Answer in French.\" --temperature 0 < question.txt\n"
      "  penstock generate --raw \"Once upon a time\" --max-tokens 100 --stop $'\\n\\n'\n"
      "  penstock generate --server 127.0.0.1:7070 \"Why is the sky blue?\"\n"
      "  penstock generate -n 3 --seed 7 --json \"Name a river.\" | jq -r '.choices[].text'\n\n"
      "The JSON object has prompt_tokens and tokens (ids; a final stop token is among them), "
      "text,\n"
      "finish_reason (stop, length, cancelled), ttft_ms, tokens_per_s, and logprobs when asked "
      "for;\n"
      "with --n above 1 the answers are in an array, choices.");
  generate->callback([flags, &run] { run = [flags] { return Generate(*flags); }; });
}

}  // namespace penstock::cli
