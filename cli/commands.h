// SPDX-License-Identifier: Apache-2.0
// The commands of the program, one file each. A Register function adds a subcommand with its flags
// to `app`, and puts what is to be run into `run` when that subcommand was chosen.
#pragma once

#include <functional>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"

namespace penstock::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;  // As shells have it: 128 + SIGINT.

// Gives the exit code; an error is printed and becomes kExitFailed.
using Run = std::function<absl::StatusOr<int>()>;

void RegisterGenerate(CLI::App& app, Run& run);
void RegisterChat(CLI::App& app, Run& run);
void RegisterTokenize(CLI::App& app, Run& run);
void RegisterInspect(CLI::App& app, Run& run);
void RegisterPerplexity(CLI::App& app, Run& run);
void RegisterQuality(CLI::App& app, Run& run);
void RegisterModel(CLI::App& app, Run& run);
void RegisterPrefill(CLI::App& app, Run& run);
void RegisterDecode(CLI::App& app, Run& run);
void RegisterKvstore(CLI::App& app, Run& run);
void RegisterGateway(CLI::App& app, Run& run);
void RegisterCoordinator(CLI::App& app, Run& run);
void RegisterStore(CLI::App& app, Run& run);
void RegisterStatus(CLI::App& app, Run& run);
void RegisterExplain(CLI::App& app, Run& run);
void RegisterUp(CLI::App& app, Run& run);
void RegisterDoctor(CLI::App& app, Run& run);
void RegisterTrace(CLI::App& app, Run& run);
void RegisterBench(CLI::App& app, Run& run);
void RegisterReplay(CLI::App& app, Run& run);
void RegisterVersion(CLI::App& app, Run& run);

}  // namespace penstock::cli
