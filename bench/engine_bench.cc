// SPDX-License-Identifier: Apache-2.0
// Measures the engine in this process and prints one JSON object; bench/engine.py and
// bench/quality.py run it. `engine_bench COMMAND --help` explains the flags.
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "base/file.h"
#include "base/status.h"
#include "base/time.h"
#include "bench/logits_file.h"
#include "bench/machine_limits.h"
#include "bench/work.h"
#include "device/cuda_plugin.h"
#include "engine/local_model.h"
#include "kernels/numerics.h"
#include "nlohmann/json.hpp"

namespace penstock::bench {
namespace {

using engine::LocalModel;
using nlohmann::ordered_json;

constexpr std::int32_t kWarmSteps = 2;  // Decode steps before the clock starts.

struct Flags {
  std::string model;
  int threads = 2;
  std::string kv_dtype = "f16";
  std::string activations = "int8";
  std::string device = "cpu";
  std::string cuda_plugin;
  std::string numerics = "exact";
  std::int32_t context = 4;
  std::int32_t tokens = 64;
  std::int32_t streams = 1;
  std::string prompt = "The capital of France is";
  std::string tokens_file;
  std::string text_file;
  std::string out;
};

// KV of that many tokens when no layer's window lets go of any, in blocks of up to 32 tokens that
// are rounded up to 4 KiB.
std::size_t UnwindowedKvBytes(const model::Architecture& architecture, KvDtype dtype,
                              std::int32_t tokens) {
  const KvSpec spec = architecture.MakeKvSpec(dtype);
  const std::size_t blocks = static_cast<std::size_t>(tokens) / 32 + 1;
  return blocks * (32 * spec.BytesPerToken() + 4096 * spec.groups.size());
}

absl::StatusOr<std::unique_ptr<LocalModel>> LoadModel(const Flags& flags,
                                                      engine::MemoryRequest memory,
                                                      bool keep_windowed = false) {
  ASSIGN_OR_RETURN(memory.kv_dtype, ParseKvDtype(flags.kv_dtype));
  ASSIGN_OR_RETURN(std::unique_ptr<LocalModel> model, LocalModel::Open(flags.model));
  if (keep_windowed) {
    memory.kv_bytes =
        UnwindowedKvBytes(model->architecture(), memory.kv_dtype, memory.context_tokens);
  }
  LocalModel::Options options;
  options.threads = flags.threads;
  options.float_activations = flags.activations == "f32";
  options.memory = memory;
  if (flags.device == "cuda") {
    ASSIGN_OR_RETURN(const LoadedCudaPlugin loaded, LoadCudaPlugin(flags.cuda_plugin));
    options.cuda = loaded.plugin;
  }
  ASSIGN_OR_RETURN(options.numerics, kernels::ParseNumerics(flags.numerics));
  RETURN_IF_ERROR(model->Load(options, [](std::size_t, std::size_t) {}));
  return model;
}

std::vector<TokenId> RandomTokens(std::mt19937& generator, std::int32_t count, std::int32_t vocab) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(count));
  for (TokenId& token : tokens) {
    token = static_cast<TokenId>(generator() % static_cast<std::uint32_t>(vocab));
  }
  return tokens;
}

// The most memory this process has had resident, in bytes; 0 where the system does not tell.
std::size_t PeakResidentBytes() {
  std::ifstream status("/proc/self/status");
  std::string key;
  while (status >> key) {
    std::size_t kib = 0;
    if (key == "VmHWM:" && status >> kib) return kib << 10;
  }
  return 0;
}

ordered_json Json(const MachineLimits& limits) {
  return {{"read_gb_per_s", limits.read_bytes_per_s / 1e9},
          {"fma_g_per_s", limits.fma_per_s / 1e9},
          {"int_dot_g_per_s", limits.int_dot_per_s / 1e9}};
}

// What all timed commands report. Looks at memory first: the limits need some of their own.
ordered_json Report(LocalModel& model, const engine::KvPool::Stats& pool, double tokens,
                    double seconds, const Work& work) {
  const std::size_t peak_bytes = PeakResidentBytes();
  const MachineLimits limits =
      MeasureMachineLimits(model.options().threads, static_cast<std::size_t>(work.read_bytes));
  return {{"tokens", tokens},
          {"seconds", seconds},
          {"tokens_per_s", tokens / seconds},
          {"peak_resident_bytes", peak_bytes},
          {"weights_bytes", model.plan().weights_bytes},
          {"kv_bytes", pool.bytes_committed},
          {"limits", Json(limits)}};
}

void AddShare(ordered_json& report, const LeastTime& least, double seconds) {
  report["limit"] = least.limit;
  report["limit_share"] = least.seconds / seconds;
}

MachineLimits LimitsOf(const ordered_json& report) {
  const ordered_json& limits = report["limits"];
  return {limits["read_gb_per_s"].get<double>() * 1e9, limits["fma_g_per_s"].get<double>() * 1e9,
          limits["int_dot_g_per_s"].get<double>() * 1e9};
}

// Steps until every sequence has decoded a token of its own.
absl::Status FinishPrompts(engine::Engine& engine, std::int32_t sequences) {
  while (true) {
    const engine::StepReport step = engine.Step();
    for (const engine::TokenOutput& output : step.outputs) RETURN_IF_ERROR(output.error);
    if (step.decode_rows == sequences && step.prefill_rows == 0) return absl::OkStatus();
    if (engine.idle()) return absl::InternalError("the requests ended while they were measured");
  }
}

absl::StatusOr<ordered_json> Decode(const Flags& flags) {
  engine::MemoryRequest memory;
  memory.sequences = flags.streams;
  // The first of many prompts decodes while the last one is still being computed.
  const std::int64_t prompt_steps =
      std::int64_t{flags.streams} * flags.context / memory.chunk_tokens + flags.streams;
  memory.context_tokens =
      flags.context + static_cast<std::int32_t>(prompt_steps) + kWarmSteps + flags.tokens + 1;
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalModel> model, LoadModel(flags, memory));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::Engine> engine, model->MakeEngine());
  std::mt19937 generator(1);
  for (std::int32_t i = 0; i < flags.streams; ++i) {
    engine::Request request;
    request.prompt = RandomTokens(generator, flags.context, model->architecture().vocab);
    request.sampling.temperature = 0;
    request.max_tokens = memory.context_tokens;
    request.ignore_eos = true;
    RETURN_IF_ERROR(engine->Submit(std::move(request)).status());
  }
  RETURN_IF_ERROR(FinishPrompts(*engine, flags.streams));
  for (std::int32_t i = 1; i < kWarmSteps; ++i) engine->Step();
  const MonoTime start = SteadyClock().Now();
  for (std::int32_t i = 0; i < flags.tokens; ++i) {
    const engine::StepReport step = engine->Step();
    if (step.decode_rows != flags.streams) return absl::InternalError("a sequence ended early");
  }
  const double seconds = ToSeconds(SteadyClock().Now() - start);

  const std::int64_t context = flags.context + kWarmSteps + flags.tokens / 2;
  const KvDtype kv_dtype = model->options().memory.kv_dtype;
  Work step = PassWork(model->architecture(), kv_dtype, model->plan().weights_bytes, context, 1);
  for (std::int32_t i = 1; i < flags.streams; ++i) {
    step += KvAndRows(model->architecture(), kv_dtype, context, 1);
  }
  ordered_json report = Report(*model, engine->PoolStats(),
                               static_cast<double>(flags.tokens) * flags.streams, seconds, step);
  report["context"] = flags.context;
  report["streams"] = flags.streams;
  AddShare(report, TimeAtLimits(step, LimitsOf(report)), seconds / flags.tokens);
  return report;
}

// From the prompt's arrival to its first token, after a short one that warms everything up.
absl::StatusOr<ordered_json> Prefill(const Flags& flags) {
  constexpr std::int32_t kWarmTokens = 64;
  engine::MemoryRequest memory;
  memory.context_tokens = std::max(flags.tokens, kWarmTokens) + 1;
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalModel> model, LoadModel(flags, memory));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::Engine> engine, model->MakeEngine());
  std::mt19937 generator(1);
  double seconds = 0;
  for (const std::int32_t tokens : {kWarmTokens, flags.tokens}) {
    engine::Request request;
    request.prompt = RandomTokens(generator, tokens, model->architecture().vocab);
    request.sampling.temperature = 0;
    request.max_tokens = 1;
    const MonoTime start = SteadyClock().Now();
    RETURN_IF_ERROR(engine->Submit(std::move(request)).status());
    while (!engine->idle()) engine->Step();
    seconds = ToSeconds(SteadyClock().Now() - start);
  }
  const Work work = PassWork(model->architecture(), model->options().memory.kv_dtype,
                             model->plan().weights_bytes, 0, flags.tokens);
  ordered_json report = Report(*model, engine->PoolStats(), flags.tokens, seconds, work);
  AddShare(report, TimeAtLimits(work, LimitsOf(report)), seconds);
  return report;
}

// The caller measures from before this process was started until it has read the line.
absl::StatusOr<ordered_json> FirstToken(const Flags& flags) {
  engine::MemoryRequest memory;
  memory.context_tokens = 512;
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalModel> model, LoadModel(flags, memory));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::Engine> engine, model->MakeEngine());
  engine::Request request;
  request.prompt = model->tokenizer().Encode(flags.prompt, {});
  request.sampling.temperature = 0;
  request.max_tokens = 1;
  RETURN_IF_ERROR(engine->Submit(std::move(request)).status());
  while (!engine->idle()) {
    const engine::StepReport step = engine->Step();
    for (const engine::TokenOutput& output : step.outputs) {
      if (output.token.has_value()) return ordered_json{{"token", output.token->token}};
    }
  }
  return absl::InternalError("the prompt gave no token");
}

absl::StatusOr<ordered_json> Tokenize(const Flags& flags) {
  constexpr std::size_t kTextBytesMax = std::size_t{64} << 20;
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalModel> model, LocalModel::Open(flags.model));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.text_file, kTextBytesMax));
  return ordered_json{{"tokens", model->tokenizer().Encode(text, {})}};
}

absl::StatusOr<ordered_json> Logits(const Flags& flags) {
  constexpr std::size_t kListBytesMax = std::size_t{64} << 20;
  constexpr std::int32_t kLogitRows = 64;
  ASSIGN_OR_RETURN(const std::string list, ReadFile(flags.tokens_file, kListBytesMax));
  std::vector<TokenId> tokens;
  std::istringstream in(list);
  for (TokenId token = 0; in >> token;) tokens.push_back(token);
  if (!in.eof()) {
    return absl::InvalidArgumentError(
        absl::StrCat(flags.tokens_file, ": entry ", tokens.size() + 1, " is not a token id"));
  }
  engine::MemoryRequest memory;
  memory.context_tokens = static_cast<std::int32_t>(std::max<std::size_t>(tokens.size(), 1));
  memory.chunk_tokens = memory.logit_rows = kLogitRows;
  ASSIGN_OR_RETURN(const std::unique_ptr<LocalModel> model, LoadModel(flags, memory, true));
  RETURN_IF_ERROR(WriteLogits(*model, tokens, flags.out));
  return ordered_json{{"tokens", tokens.size()}, {"vocab", model->architecture().vocab}};
}

absl::StatusOr<ordered_json> Limits(const Flags& flags) {
  constexpr std::size_t kReadBytes = std::size_t{96} << 20;
  return Json(MeasureMachineLimits(flags.threads, kReadBytes));
}

using Command = absl::StatusOr<ordered_json> (*)(const Flags& flags);

CLI::App* AddCommand(CLI::App& app, Command& chosen, Flags& flags, const char* name,
                     const char* what, Command command) {
  CLI::App* sub = app.add_subcommand(name, what);
  sub->callback([&chosen, command] { chosen = command; });
  sub->add_option("--threads", flags.threads, "Threads")->check(CLI::Range(1, 1024));
  if (command == Limits) return sub;
  sub->add_option("--model", flags.model, "GGUF file or Hugging Face folder")->required();
  sub->add_option("--kv-dtype", flags.kv_dtype, "f16, bf16, f32 or int8");
  sub->add_option("--activations", flags.activations, "int8 or f32")
      ->check(CLI::IsMember({"int8", "f32"}));
  sub->add_option("--device", flags.device, "cpu or cuda; limits are the CPU's always")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  sub->add_option("--cuda-plugin", flags.cuda_plugin, "As of penstock");
  sub->add_option("--numerics", flags.numerics, "As of penstock");
  return sub;
}

int Main(int argc, char** argv) {
  CLI::App app("Measures the engine and prints one JSON object.");
  app.require_subcommand(1);
  Flags flags;
  Command command = nullptr;
  const auto positive = CLI::Range(1, 1 << 20);
  CLI::App* decode = AddCommand(app, command, flags, "decode",
                                "Tokens per second of sequences decoding together", Decode);
  decode->add_option("--context", flags.context, "Prompt tokens of each")->check(positive);
  decode->add_option("--tokens", flags.tokens, "Steps timed")->check(positive);
  decode->add_option("--streams", flags.streams, "Sequences")->check(CLI::Range(1, 64));
  CLI::App* prefill =
      AddCommand(app, command, flags, "prefill", "Prompt tokens per second", Prefill);
  prefill->add_option("--tokens", flags.tokens, "Length of the prompt")->check(positive);
  CLI::App* first =
      AddCommand(app, command, flags, "first-token", "Loads, and gives one token", FirstToken);
  first->add_option("--prompt", flags.prompt, "Text");
  CLI::App* tokenize = AddCommand(app, command, flags, "tokenize", "Token ids of a text", Tokenize);
  tokenize->add_option("--text-file", flags.text_file, "Text")->required();
  CLI::App* logits = AddCommand(app, command, flags, "logits", "Logits of every position", Logits);
  logits->add_option("--tokens-file", flags.tokens_file, "Ids as text, one a line")->required();
  logits->add_option("--out", flags.out, "File to write: f32 [tokens, vocab]")->required();
  AddCommand(app, command, flags, "limits", "What the machine can do", Limits);
  CLI11_PARSE(app, argc, argv);

  const absl::StatusOr<ordered_json> result = command(flags);
  if (!result.ok()) {
    std::cerr << "engine_bench: " << ToStd(result.status().message()) << "\n";
    return 1;
  }
  std::cout << result->dump() << std::endl;
  return 0;
}

}  // namespace
}  // namespace penstock::bench

int main(int argc, char** argv) { return penstock::bench::Main(argc, argv); }
