// SPDX-License-Identifier: Apache-2.0
#include "cli/flags.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <random>
#include <span>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/device_name.h"
#include "base/exit_code.h"
#include "base/status.h"
#include "base/time.h"
#include "cli/model_store.h"
#include "cli/terminal.h"
#include "device/cuda_plugin.h"
#include "model/text_stream.h"

namespace penstock::cli {
namespace {

constexpr const char* kModelGroup = "Model and machine";
constexpr const char* kSamplingGroup = "Sampling";

bool ParseInt(std::string_view text, int* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

absl::Status ParseLogitBias(const std::vector<std::string>& texts,
                            std::map<TokenId, double>* biases) {
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    int token = 0;
    double bias = 0;
    if (equals == std::string::npos ||
        !ParseInt(std::string_view(text).substr(0, equals), &token) ||
        !absl::SimpleAtod(text.substr(equals + 1), &bias)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--logit-bias takes ID=BIAS, such as 42=-100, got \"", text, "\""));
    }
    (*biases)[token] = bias;
  }
  return absl::OkStatus();
}

// The plug-in, once it has shown that these GPUs work.
absl::StatusOr<const CudaPlugin*> FindCuda(const ModelFlags& flags, std::span<const int> gpus) {
  ASSIGN_OR_RETURN(const LoadedCudaPlugin loaded, LoadCudaPlugin(flags.cuda_plugin));
  ASSIGN_OR_RETURN(const CudaSystem system, FindGpus(*loaded.plugin));
  for (const int gpu : gpus) RETURN_IF_ERROR(CheckGpu(system, gpu));
  return loaded.plugin;
}

// Nothing of this process can go on: not even the memory that its destructors would give back is
// there. Of several that come here, one speaks.
void EndForGpu(const std::string& text) {
  static std::once_flag ended;
  std::call_once(ended, [&] {
    absl::FPrintF(stderr, "%spenstock:%s %s\n", ToAbsl(StderrStyle().red),
                  ToAbsl(StderrStyle().reset), text);
    ::_exit(kExitGpuFailed);
  });
}

// A check of --device: one of `words`, or GPUs.
CLI::Validator DeviceIn(std::vector<std::string> words) {
  const std::string names = absl::StrCat("{", absl::StrJoin(words, ","), ",cuda,cuda:N,M}");
  const std::string wanted = absl::StrCat(names, ", numbers from 0 to ", kGpusMax - 1);
  return CLI::Validator(
      [words = std::move(words), wanted](const std::string& device) -> std::string {
        if (std::ranges::find(words, device) != words.end() || GpusOf(device)) return "";
        return absl::StrCat(device, " not in ", wanted);
      },
      names);
}

void AddCudaPluginFlag(CLI::App& command, ModelFlags& flags) {
  command
      .add_option(
          "--cuda-plugin", flags.cuda_plugin,
          "The CUDA plug-in (default: libpenstock_cuda.so beside this program, or where the "
          "system looks for libraries)")
      ->group(kModelGroup);
}

}  // namespace

void AddModelFlag(CLI::App& command, ModelFlags& flags) {
  command
      .add_option("-m,--model", flags.model,
                  "A GGUF file, a Hugging Face folder, or the name of a model that `penstock model "
                  "get` fetched (default: smollm2)")
      ->group(kModelGroup);
}

void AddServerFlag(CLI::App& command, ModelFlags& flags) {
  command
      .add_option("--server", flags.server,
                  "HOST:PORT of a running cluster that answers instead of this machine; --model is "
                  "then what it calls the model, and may be left out where it has one alone")
      ->group(kModelGroup);
}

void AddEngineFlags(CLI::App& command, ModelFlags& flags) {
  command
      .add_option("-t,--threads", flags.threads,
                  "Threads to compute with (default: one per CPU that this process may use)")
      ->check(CLI::Range(1, 1024))
      ->group(kModelGroup);
  command
      .add_option("--cpus", flags.cpus,
                  "Pin one thread to each of these CPUs, such as 0,2,4-7; sets --threads")
      ->group(kModelGroup);
  command
      .add_option("--kv-dtype", flags.kv_dtype,
                  "Type of the KV cache: f16, bf16, f32, or int8 with a scale per token and head")
      ->capture_default_str()
      ->check(CLI::IsMember({"f16", "bf16", "f32", "int8"}))
      ->group(kModelGroup);
  command
      .add_option("--activations", flags.activations,
                  "int8 (fast), or f32: every product in float, slow, for comparison")
      ->capture_default_str()
      ->check(CLI::IsMember({"int8", "f32"}))
      ->group(kModelGroup);
  command
      .add_option("--numerics", flags.numerics,
                  "exact: a request's answer depends on nothing but itself. fast, on GPUs alone: "
                  "products by whichever algorithm cuBLASLt picks for a batch, prompts attended "
                  "to by cuDNN where it is found, so that the same request may be answered "
                  "otherwise in other company; shares no KV with exact")
      ->capture_default_str()
      ->check(CLI::IsMember({"exact", "fast"}))
      ->group(kModelGroup);
  command
      .add_option("--chunk-tokens", flags.chunk_tokens,
                  "Prompt tokens computed at once; changes memory and speed, never the answer")
      ->capture_default_str()
      ->group(kModelGroup);
  command
      .add_option("--block-tokens", flags.block_tokens,
                  "Tokens of a block of the KV cache, what is reused and moved as one: a power of "
                  "two; one for all workers of a model")
      ->capture_default_str()
      ->group(kModelGroup);
  command
      .add_option("--page-tokens", flags.page_tokens,
                  "Tokens of a page of the KV cache, a divisor of --block-tokens; workers of a "
                  "model may differ (default: 32, or a block where that is smaller)")
      ->check(CLI::PositiveNumber)
      ->group(kModelGroup);
  command
      .add_option("--context-tokens", flags.context_tokens,
                  "Longest prompt and answer together (default: what the command needs)")
      ->check(CLI::PositiveNumber)
      ->group(kModelGroup);
  command
      .add_option("--kv-bytes", flags.kv_bytes,
                  "Memory for the KV cache, such as 512MiB (default: what the context needs)")
      ->transform(CLI::AsSizeValue(false))
      ->group(kModelGroup);
}

void AddGpuFlags(CLI::App& command, ModelFlags& flags) {
  command
      .add_option("--device", flags.device,
                  "cpu; cuda: the first NVIDIA GPU that CUDA_VISIBLE_DEVICES shows, or the first "
                  "--tp times "
                  "--pp of them, which give the very same answers; cuda:N,M: those numbers, from "
                  "0, one for "
                  "each shard, stage by stage; or auto: GPUs where `penstock doctor` finds them, "
                  "else the CPU")
      ->capture_default_str()
      ->check(DeviceIn({"cpu", "auto"}))
      ->group(kModelGroup);
  AddCudaPluginFlag(command, flags);
}

void AddSplitFlags(CLI::App& command, ModelFlags& flags) {
  command
      .add_option("--pp", flags.pp,
                  "Pipeline parallel: stages of the model that compute one after the other, each "
                  "with consecutive layers and their KV, in --tp shards. It changes no answer")
      ->capture_default_str()
      ->check(CLI::Range(1, 64))
      ->group(kModelGroup);
  command
      .add_option("--tp", flags.tp,
                  "Tensor parallel: shards of the model that compute side by side, each with its "
                  "heads, its part of the MLP and of the vocabulary, and its share of the threads")
      ->capture_default_str()
      ->check(CLI::Range(1, 64))
      ->group(kModelGroup);
  command
      .add_option("--tp-sum", flags.tp_sum,
                  "Partial sums that products over what shards split are made of, a multiple of "
                  "--tp (default: --tp). The same number gives the very same answers on "
                  "any number of shards that divides it; another one, other roundings")
      ->check(CLI::Range(1, 64))
      ->group(kModelGroup);
}

void ServerExcludesTheRest(CLI::App& command) {
  CLI::Option* const server = command.get_option("--server");
  for (CLI::Option* const option : command.get_options()) {
    const bool of_here = option->get_group() == kModelGroup && option != server;
    if (of_here && !option->check_lname("model")) server->excludes(option);
  }
}

void AddDeviceFlags(CLI::App& command, ModelFlags& flags) {
  const auto add = [&](const char* name, auto& value, const char* about) {
    return command.add_option(name, value, about)->capture_default_str()->group(kModelGroup);
  };
  add("--device", flags.device,
      "cpu; cuda: the first NVIDIA GPU that CUDA_VISIBLE_DEVICES shows, or the first --tp times "
      "--pp of them, which give the very same answers (`penstock up` chooses near ones); cuda:N,M: "
      "those numbers, from 0, one for "
      "each "
      "shard, stage by stage; or "
      "paced: takes the time of a model without "
      "computing it, to try clusters larger than the machine; its answers are nonsense, and always "
      "the same")
      ->check(DeviceIn({"cpu", "paced"}));
  AddCudaPluginFlag(command, flags);
  add("--pace-prefill-tokens-per-s", flags.pace_prefill_tokens_per_s,
      "Paced: how fast prompts are computed");
  add("--pace-step-ms", flags.pace_step_ms, "Paced: what each step takes");
  add("--pace-sequence-ms", flags.pace_sequence_ms, "Paced: and each running answer in it");
}

std::vector<std::string> DeviceArguments(const ModelFlags& flags) {
  std::vector<std::string> arguments;
  if (!flags.cuda_plugin.empty()) arguments = {"--cuda-plugin", flags.cuda_plugin};
  if (flags.device != "paced") return arguments;
  for (const auto& [name, value] :
       {std::pair{"--pace-prefill-tokens-per-s", flags.pace_prefill_tokens_per_s},
        std::pair{"--pace-step-ms", flags.pace_step_ms},
        std::pair{"--pace-sequence-ms", flags.pace_sequence_ms}}) {
    arguments.emplace_back(name);
    arguments.push_back(absl::StrCat(value));
  }
  return arguments;
}

absl::StatusOr<std::vector<int>> ParseCpuList(std::string_view text) {
  constexpr int kCpusMax = 1024;
  std::vector<int> cpus;
  for (const absl::string_view piece : absl::StrSplit(ToAbsl(text), ',')) {
    const std::string_view range = ToStd(piece);
    const std::size_t dash = range.find('-');
    int first = 0, last = 0;
    bool good = ParseInt(range.substr(0, dash), &first);
    last = first;
    if (good && dash != std::string_view::npos) good = ParseInt(range.substr(dash + 1), &last);
    if (!good || first < 0 || last < first || last >= kCpusMax ||
        cpus.size() + static_cast<std::size_t>(last - first) >= kCpusMax) {
      return absl::InvalidArgumentError(absl::StrCat("--cpus takes CPU numbers below ", kCpusMax,
                                                     " such as 0,2,4-7, got \"", piece, "\""));
    }
    for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
  }
  return cpus;
}

absl::StatusOr<engine::LocalModel::Options> MakeOptions(const ModelFlags& flags) {
  engine::LocalModel::Options options;
  options.threads = flags.threads;
  if (!flags.cpus.empty()) {
    ASSIGN_OR_RETURN(options.cpus, ParseCpuList(flags.cpus));
    if (flags.threads != 0 && static_cast<std::size_t>(flags.threads) != options.cpus.size()) {
      return absl::InvalidArgumentError(absl::StrCat("--threads is ", flags.threads,
                                                     ", but --cpus names ", options.cpus.size(),
                                                     "; give one of them"));
    }
  }
  ASSIGN_OR_RETURN(options.memory.kv_dtype, ParseKvDtype(flags.kv_dtype));
  options.float_activations = flags.activations == "f32";
  ASSIGN_OR_RETURN(options.numerics, kernels::ParseNumerics(flags.numerics));
  options.stages = flags.pp;
  options.shards = flags.tp;
  options.sums = flags.tp_sum != 0 ? flags.tp_sum : flags.tp;
  options.memory.chunk_tokens = flags.chunk_tokens;
  options.memory.context_tokens = flags.context_tokens;
  options.memory.kv_bytes = flags.kv_bytes;
  options.memory.block_tokens = flags.block_tokens;
  options.memory.page_tokens =
      flags.page_tokens != 0 ? flags.page_tokens : std::min(32, flags.block_tokens);
  const bool gpus = GpusOf(flags.device).has_value();
  if (gpus || flags.device == "auto") {
    ASSIGN_OR_RETURN(options.gpus,
                     GpusOfShards(gpus ? flags.device : "cuda", options.shards, options.stages));
    const absl::StatusOr<const CudaPlugin*> cuda = FindCuda(flags, options.gpus);
    if (gpus) RETURN_IF_ERROR(cuda.status());
    options.cuda = cuda.value_or(nullptr);
    options.on_gpu_failed = &EndForGpu;
  }
  if (flags.device == "paced") {
    // Clamped far outside of what Validate takes, so that no number is too large for a Duration.
    const auto millis = [](double ms) {
      return std::chrono::duration_cast<Duration>(
          std::chrono::duration<double, std::milli>(std::clamp(ms, -1.0, 1e6)));
    };
    options.pace = {.prefill_tokens_per_s = flags.pace_prefill_tokens_per_s,
                    .step = millis(flags.pace_step_ms),
                    .sequence = millis(flags.pace_sequence_ms)};
  }
  return options;
}

SamplingFlags::SamplingFlags() {
  params.temperature = 0.8;
  params.top_k = 40;
  params.top_p = 0.95;
  params.min_p = 0.05;
}

void AddSamplingFlags(CLI::App& command, SamplingFlags& flags) {
  const auto add = [&command](const char* name, auto& value, const char* about) {
    command.add_option(name, value, about)->capture_default_str()->group(kSamplingGroup);
  };
  engine::SamplingParams& params = flags.params;
  add("--temperature", params.temperature,
      "0 takes the most likely token always; higher is livelier, up to 100");
  add("--top-k", params.top_k, "Only the K most likely tokens; 0 is off");
  add("--top-p", params.top_p, "Only the most likely tokens that make up P together; 1 is off");
  add("--min-p", params.min_p,
      "Only tokens at least this likely, relative to the most likely; 0 is off");
  add("--typical-p", params.typical_p, "Locally typical tokens that make up P; 1 is off");
  add("--repetition-penalty", params.repetition_penalty,
      "Weakens tokens of the prompt and the answer; 1 is off");
  add("--presence-penalty", params.presence_penalty,
      "Taken off the logits of tokens that the answer has, -2 to 2");
  add("--frequency-penalty", params.frequency_penalty, "The same, once per occurrence, -2 to 2");
  command
      .add_option("--logit-bias", flags.logit_bias,
                  "ID=BIAS, -100 to 100, added to a token's logit; may be repeated")
      ->allow_extra_args(false)
      ->group(kSamplingGroup);
  command
      .add_option("--seed", flags.seed,
                  "The same seed gives the same answer, whatever else runs (default: random)")
      ->group(kSamplingGroup);
  command
      .add_option("--max-tokens", flags.max_tokens, "Longest answer; the context may end it before")
      ->capture_default_str()
      ->check(CLI::PositiveNumber)
      ->group(kSamplingGroup);
  command
      .add_option("--stop", flags.stops,
                  "Text that ends the answer and is not part of it; may be repeated")
      ->allow_extra_args(false)
      ->group(kSamplingGroup);
  command
      .add_flag("--ignore-eos", flags.ignore_eos,
                "Go on after the model's end of text, up to --max-tokens")
      ->group(kSamplingGroup);
}

absl::StatusOr<engine::SamplingParams> MakeSampling(const SamplingFlags& flags,
                                                    std::int32_t vocab) {
  engine::SamplingParams params = flags.params;
  RETURN_IF_ERROR(ParseLogitBias(flags.logit_bias, &params.logit_bias));
  RETURN_IF_ERROR(params.Validate(vocab));
  RETURN_IF_ERROR(model::ValidateStopStrings(flags.stops));
  if (flags.seed.has_value()) {
    params.seed = *flags.seed;
  } else {
    std::random_device device;
    params.seed = device();  // 32 bits: short enough to be typed again.
  }
  return params;
}

absl::StatusOr<std::unique_ptr<engine::LocalModel>> OpenModel(const ModelFlags& flags) {
  ASSIGN_OR_RETURN(const std::string path, ResolveModel(flags.model));
  return engine::LocalModel::Open(path);
}

absl::Status LoadModel(engine::LocalModel& model, const engine::LocalModel::Options& options) {
  ProgressLine progress;
  return model.Load(options, [&progress](std::size_t done, std::size_t total) {
    progress.Update("loading", done, total);
  });
}

}  // namespace penstock::cli
