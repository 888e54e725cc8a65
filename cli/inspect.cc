// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/kv_spec.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/model_store.h"
#include "cli/terminal.h"
#include "engine/local_model.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int32_t kManyTokens = 1024;  // "1k tokens".

struct InspectFlags {
  std::string model;
  bool json = false;
  bool tensors = false;
};

// KV bytes that grow with every token, and those of layers with a window, which stop growing.
struct KvCost {
  std::size_t growing_per_token = 0;
  std::size_t windows = 0;
};

KvCost CostOf(const model::Architecture& architecture, KvDtype dtype) {
  KvCost cost;
  for (const KvGroup& group : architecture.MakeKvSpec(dtype).groups) {
    const std::size_t per_token = group.BytesPerToken();
    if (group.window_tokens == 0) {
      cost.growing_per_token += per_token;
    } else {
      cost.windows += per_token * static_cast<std::size_t>(group.window_tokens);
    }
  }
  return cost;
}

// KV bytes of the first `tokens` tokens.
std::size_t KvBytes(const model::Architecture& architecture, KvDtype dtype, std::int32_t tokens) {
  std::size_t bytes = 0;
  for (const KvGroup& group : architecture.MakeKvSpec(dtype).groups) {
    const std::int32_t held =
        group.window_tokens > 0 ? std::min(group.window_tokens, tokens) : tokens;
    bytes += static_cast<std::size_t>(held) * group.BytesPerToken();
  }
  return bytes;
}

std::string SchemeName(const model::VocabularyData& vocabulary) {
  return vocabulary.scheme == model::VocabularyData::Scheme::kSentencePiece ? "sentencepiece"
                                                                            : "byte-level bpe";
}

std::int64_t CountOf(const model::Tensor& tensor) {
  std::int64_t count = 1;
  for (const std::int64_t size : tensor.shape) count *= size;
  return count;
}

Json ArchitectureJson(const model::Architecture& a) {
  Json windows = Json::array();
  for (const model::LayerSpec& layer : a.layers) windows.push_back(layer.window_tokens);
  return {{"family", a.family},        {"name", a.name},
          {"layers", a.layers.size()}, {"d_model", a.d_model},
          {"qo_heads", a.qo_heads},    {"kv_heads", a.kv_heads},
          {"head_dim", a.head_dim},    {"ffn_dim", a.ffn_dim},
          {"vocab", a.vocab},          {"context_tokens_max", a.context_tokens_max},
          {"tied_head", a.tied_head},  {"qkv_bias", a.qkv_bias},
          {"qk_norm", a.qk_norm},      {"layer_window_tokens", windows}};
}

Json Describe(const engine::LocalModel& model, bool with_tensors) {
  const model::ModelFile& file = model.file();
  const model::Architecture& a = model.architecture();
  std::int64_t parameters = 0;
  std::size_t bytes = 0;
  std::map<std::string, std::pair<int, std::size_t>> formats;  // Count and bytes by name.
  Json tensors = Json::array();
  for (const model::Tensor& tensor : file.all_tensors()) {
    const std::string format(kernels::Info(tensor.format).name);
    parameters += CountOf(tensor);
    bytes += tensor.bytes.size();
    formats[format].first += 1;
    formats[format].second += tensor.bytes.size();
    tensors.push_back({{"name", tensor.name},
                       {"type", format},
                       {"shape", tensor.shape},
                       {"bytes", tensor.bytes.size()}});
  }
  Json out = {{"path", file.path()},
              {"format", file.format()},
              {"architecture", ArchitectureJson(a)},
              {"parameters", parameters},
              {"tensors", file.all_tensors().size()},
              {"tensor_bytes", bytes}};
  for (const auto& [name, sums] : formats) {
    out["types"][name] = {{"tensors", sums.first}, {"bytes", sums.second}};
  }
  for (const KvDtype dtype : kKvDtypes) {
    const KvCost cost = CostOf(a, dtype);
    out["kv"][std::string(ToString(dtype))] = {
        {"bytes_first_1k_tokens", KvBytes(a, dtype, kManyTokens)},
        {"bytes_per_1k_tokens", cost.growing_per_token * kManyTokens},
        {"window_bytes_max", cost.windows},
        {"bytes_full_context", KvBytes(a, dtype, a.context_tokens_max)}};
  }
  const model::VocabularyData& vocabulary = file.vocabulary();
  out["tokenizer"] = {{"scheme", SchemeName(vocabulary)},
                      {"tokens", vocabulary.pieces.size()},
                      {"adds_bos", vocabulary.add_bos},
                      {"end_of_generation", vocabulary.end_of_generation}};
  out["chat_template"] = !model.has_chat_template() ? "none"
                         : model.chat_template().ok()
                             ? "yes"
                             : std::string(model.chat_template().status().message());
  if (with_tensors) out["tensor_list"] = std::move(tensors);
  return out;
}

std::string Layers(const model::Architecture& a) {
  std::map<std::int32_t, int> counts;
  for (const model::LayerSpec& layer : a.layers) ++counts[layer.window_tokens];
  std::vector<std::string> parts;
  for (const auto& [window, count] : counts) {
    parts.push_back(window == 0 ? absl::StrCat(count, " with full attention")
                                : absl::StrCat(count, " with a window of ", window, " tokens"));
  }
  return absl::StrCat(a.layers.size(), ": ", absl::StrJoin(parts, ", "));
}

// The same for people.
std::string Text(const engine::LocalModel& model, const Json& facts) {
  const model::Architecture& a = model.architecture();
  std::string out;
  const auto line = [&out](std::string_view name, const std::string& value) {
    absl::StrAppendFormat(&out, "%s%-16s%s%s\n", ToAbsl(StdoutStyle().bold), ToAbsl(name),
                          ToAbsl(StdoutStyle().reset), value);
  };
  line("file", absl::StrCat(model.file().path(), " (", model.file().format(), ")"));
  line("model", absl::StrCat(a.name.empty() ? "unnamed" : a.name, ", ", a.family));
  line("parameters",
       absl::StrFormat("%.1f million in %d tensors, %s",
                       static_cast<double>(facts["parameters"]) / 1e6,
                       facts["tensors"].get<std::int64_t>(), FormatBytes(facts["tensor_bytes"])));
  line("layers", Layers(a));
  line("shape",
       absl::StrFormat("d_model %d, heads %d (KV %d) of %d, feed-forward %d, vocabulary %d",
                       a.d_model, a.qo_heads, a.kv_heads, a.head_dim, a.ffn_dim, a.vocab));
  line("context", absl::StrCat(a.context_tokens_max, " tokens"));
  for (const auto& [name, sums] : facts["types"].items()) {
    line(absl::StrCat("  ", name), absl::StrFormat("%s, tensors: %d", FormatBytes(sums["bytes"]),
                                                   sums["tensors"].get<int>()));
  }
  for (const auto& [name, kv] : facts["kv"].items()) {
    std::string text = absl::StrCat(FormatBytes(kv["bytes_per_1k_tokens"]), " per 1k tokens");
    if (kv["window_bytes_max"] > 0) {
      absl::StrAppend(&text, ", and up to ", FormatBytes(kv["window_bytes_max"]), " for windows");
    }
    absl::StrAppend(&text, "; full context ", FormatBytes(kv["bytes_full_context"]));
    line(absl::StrCat("KV ", name), text);
  }
  line("tokenizer",
       absl::StrFormat("%s, %d tokens", facts["tokenizer"]["scheme"].get<std::string>(),
                       facts["tokenizer"]["tokens"].get<std::int64_t>()));
  line("chat template", facts["chat_template"]);
  return out;
}

std::string TensorLines(const Json& facts) {
  std::string out;
  for (const Json& tensor : facts["tensor_list"]) {
    absl::StrAppendFormat(&out, "%-36s %-6s %-16s %s\n", tensor["name"].get<std::string>(),
                          tensor["type"].get<std::string>(), tensor["shape"].dump(),
                          FormatBytes(tensor["bytes"]));
  }
  return out;
}

absl::StatusOr<int> Inspect(const InspectFlags& flags) {
  ModelFlags model_flags;
  model_flags.model = flags.model;
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, OpenModel(model_flags));
  const Json facts = Describe(*model, flags.tensors);
  if (flags.json) {
    WriteStdout(facts.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  } else {
    WriteStdout(Text(*model, facts));
    if (flags.tensors) WriteStdout("\n" + TensorLines(facts));
  }
  return kExitOk;
}

}  // namespace

void RegisterInspect(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<InspectFlags>();
  CLI::App* inspect = app.add_subcommand(
      "inspect", "Show what a model is: architecture, tensors, memory for its KV cache");
  inspect
      ->add_option("MODEL", flags->model,
                   "A GGUF file, a Hugging Face folder, or a fetched model's name")
      ->required();
  inspect->add_flag("--json", flags->json, "Print one JSON object");
  inspect->add_flag("--tensors", flags->tensors, "List every tensor");
  inspect->footer(
      "Examples:\n"
      "  penstock inspect smollm2\n"
      "  penstock inspect model.gguf --json --tensors | jq '.tensor_list[].type' | sort | uniq "
      "-c\n\n"
      "1k tokens are 1,024. Layers with a sliding window hold no more than their window.");
  inspect->callback([flags, &run] { run = [flags] { return Inspect(*flags); }; });
}

}  // namespace penstock::cli
