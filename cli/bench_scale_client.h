// SPDX-License-Identifier: Apache-2.0
// penstock bench scale: the same load for each worker, on clusters of more and more workers.
#pragma once

#include "CLI/App.hpp"
#include "cli/commands.h"

namespace penstock::cli {

void RegisterBenchScale(CLI::App& bench, Run& run);

}  // namespace penstock::cli
