// SPDX-License-Identifier: Apache-2.0
// Any text as a deployment file: faults with places in it, or a deployment that holds together.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "launch/commands.h"
#include "launch/deployment.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::launch;
  const auto deployment = ParseDeployment({reinterpret_cast<const char*>(data), size}, "f.yaml");
  if (!deployment.ok()) {
    CHECK(deployment.status().message().find("f.yaml:") == 0);
    return 0;
  }
  CHECK(!deployment->models.empty() && !deployment->hosts.empty());
  std::size_t processes = 0;
  for (std::size_t host = 0; host < deployment->hosts.size(); ++host) {
    processes += PlanProcesses(*deployment, host, {.program = "p", .folder = "f"}, "1:2").size();
  }
  CHECK_EQ(processes, 1 + deployment->gateways.size() + deployment->workers.size());
  return 0;
}
