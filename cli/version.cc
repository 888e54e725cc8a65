// SPDX-License-Identifier: Apache-2.0
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "device/cpu_info.h"

namespace penstock::cli {

void RegisterVersion(CLI::App& app, Run& run) {
  CLI::App* version = app.add_subcommand("version", "Show the version and what this CPU can run");
  version->callback([&run] {
    run = []() -> absl::StatusOr<int> {
      WriteStdout(absl::StrCat("penstock ", PENSTOCK_VERSION,
                               "\ncpu kernels: ", Describe(ThisCpu()), "\n"));
      return kExitOk;
    };
  });
}

}  // namespace penstock::cli
