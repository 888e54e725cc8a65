// SPDX-License-Identifier: Apache-2.0
// The one binary: `penstock <command>`.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "base/suggest.h"
#include "cli/commands.h"
#include "cli/terminal.h"

namespace penstock::cli {
namespace {

void PrintError(std::string_view message) {
  absl::FPrintF(stderr, "%spenstock:%s %s\n", ToAbsl(StderrStyle().red),
                ToAbsl(StderrStyle().reset), ToAbsl(message));
}

// The command that was typed, as far as one is known: `penstock model get` in a mistyped
// `penstock model get --dri`.
const CLI::App& Innermost(const CLI::App& app) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  return chosen.empty() ? app : Innermost(*chosen.back());
}

std::string FullName(const CLI::App& app) {
  return app.get_parent() == nullptr
             ? app.get_name()
             : absl::StrCat(FullName(*app.get_parent()), " ", app.get_name());
}

// What could have been meant by a word that is not known.
std::optional<std::string> Suggestion(const CLI::App& command, const std::string& typed) {
  std::vector<std::string> known;
  if (typed.starts_with("-")) {
    for (const CLI::Option* option : command.get_options()) {
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    }
    return Nearest(typed.substr(0, typed.find('=')), known);
  }
  for (const CLI::App* sub : command.get_subcommands([](const CLI::App*) { return true; })) {
    known.push_back(sub->get_name());
  }
  return Nearest(typed, known);
}

int UsageError(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = Innermost(app);
  std::string message = error.what();
  if (command.get_subcommands([](const CLI::App*) { return true; }).size() > 0 &&
      dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    message = "a command is missing";  // CLI11 calls it a subcommand.
  }
  const std::vector<std::string> unknown = app.remaining(/*recurse=*/true);
  // A mistyped command is a command missing, to CLI11.
  const bool misunderstood = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr ||
                             dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  if (misunderstood && !unknown.empty()) {
    // Words are met from the left; what follows an unknown flag may be its value.
    message = absl::StrCat("unknown ", unknown[0].starts_with("-") ? "flag " : "word ", unknown[0]);
    if (const std::optional<std::string> nearest = Suggestion(command, unknown[0])) {
      absl::StrAppend(&message, " (did you mean ", *nearest, "?)");
    }
  }
  PrintError(absl::StrCat(message, "; see `", FullName(command), " --help`"));
  return kExitUsage;
}

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // A reader that leaves is a write that fails.
  CLI::App app("Runs language models on this machine. Try: penstock model get smollm2", "penstock");
  app.require_subcommand(1);
  app.set_help_flag("-h,--help", "Show this text");
  app.set_version_flag("--version", absl::StrCat("penstock ", PENSTOCK_VERSION));
  app.get_formatter()->column_width(34);
  app.footer("`penstock COMMAND --help` explains each, with examples.");
  Run run;
  RegisterGenerate(app, run);
  RegisterChat(app, run);
  RegisterTokenize(app, run);
  RegisterInspect(app, run);
  RegisterPerplexity(app, run);
  RegisterQuality(app, run);
  RegisterModel(app, run);
  RegisterPrefill(app, run);
  RegisterDecode(app, run);
  RegisterKvstore(app, run);
  RegisterGateway(app, run);
  RegisterCoordinator(app, run);
  RegisterStatus(app, run);
  RegisterExplain(app, run);
  RegisterStore(app, run);
  RegisterTrace(app, run);
  RegisterUp(app, run);
  RegisterDoctor(app, run);
  RegisterBench(app, run);
  RegisterReplay(app, run);
  RegisterVersion(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    WriteStdout(app.help());  // Of the command that was chosen, under its full name.
    return kExitOk;
  } catch (const CLI::CallForVersion& version) {
    WriteStdout(absl::StrCat(version.what(), "\n"));
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    return UsageError(app, error);
  }
  const absl::StatusOr<int> code = run();
  if (code.ok()) return *code;
  PrintError(ToStd(code.status().message()));
  return kExitFailed;
}

}  // namespace
}  // namespace penstock::cli

// Without the destructors of globals: gRPC's threads outlive what they belong to by a moment, and
// abort where they find gRPC's own globals gone.
int main(int argc, char** argv) {
  const int code = penstock::cli::Main(argc, argv);
  std::fflush(nullptr);
  std::_Exit(code);
}
