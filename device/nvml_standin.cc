// SPDX-License-Identifier: Apache-2.0
// A stand-in for libnvidia-ml.so.1: a library with the functions of device/nvml_api.h under their own
// names, opened in its place. The machine is that of the file that PENSTOCK_NVML_MACHINE names:
//
//   driver 580.65.06
//   gpu 0000:00:00.0 X NV4/PIX NS18 SYS      a row of the matrix, as `nvidia-smi topo -m` has it: PIX PXB
//   gpu 0000:01:00.0 ...                     PHB NODE SYS, with NVLinks in front: NV4 to that GPU, NS18
//                                            to switches; without PCI behind them, SYS
//   isolated                                 NVLinks are up, and reach no memory
//   fail nvmlInit_v2 9                       that function gives this error
//
// Without the file there is no driver: NVML_ERROR_DRIVER_NOT_LOADED. Aborts where it says anything else.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "device/nvml_api.h"

// What a handle points to.
struct nvmlDevice_st {
  struct Link {
    int type = penstock::kNvmlLinkToGpu;
    std::size_t to = 0;
  };
  std::string bus_id = {};
  std::vector<std::string> cells = {};
  std::vector<int> levels = {};
  std::vector<Link> links = {};
};

namespace {

constexpr int kInvalidArgument = 2, kNotFound = 6, kDriverNotLoaded = 9;
constexpr char kSwitchBusId[] = "0000:fe:00.0";

struct Machine {
  bool there = false;
  bool isolated = false;
  std::string driver = {};
  std::vector<nvmlDevice_st> gpus = {};
  std::map<std::string, int> failures = {};
};

[[noreturn]] void Refuse(const std::string& what) {
  std::fprintf(stderr, "PENSTOCK_NVML_MACHINE: cannot read '%s'\n", what.c_str());
  std::abort();
}

int LevelOf(const std::string& word) {
  const std::map<std::string, int> levels = {
      {"X", penstock::kNvmlInternal},   {"PIX", penstock::kNvmlSingle},
      {"PXB", penstock::kNvmlMultiple}, {"PHB", penstock::kNvmlHostBridge},
      {"NODE", penstock::kNvmlNode},    {"SYS", penstock::kNvmlSystem}};
  const auto found = levels.find(word);
  if (found == levels.end()) Refuse(word);
  return found->second;
}

void Connect(nvmlDevice_st& gpu) {
  std::size_t to_switches = 0;
  for (std::size_t i = 0; i < gpu.cells.size(); ++i) {
    const std::string& cell = gpu.cells[i];
    const bool direct = cell.starts_with("NV"), switched = cell.starts_with("NS");
    const std::size_t slash = std::min(cell.find('/'), cell.size());
    gpu.levels.push_back(!direct && !switched   ? LevelOf(cell)
                         : slash == cell.size() ? penstock::kNvmlSystem
                                                : LevelOf(cell.substr(slash + 1)));
    const std::size_t links = direct || switched ? std::strtoul(cell.c_str() + 2, nullptr, 10) : 0;
    if (switched) to_switches = std::max(to_switches, links);
    if (direct) gpu.links.insert(gpu.links.end(), links, {.to = i});
  }
  gpu.links.insert(gpu.links.end(), to_switches, {.type = penstock::kNvmlLinkToSwitch});
}

Machine Read() {
  Machine machine;
  const char* const path = std::getenv("PENSTOCK_NVML_MACHINE");
  std::ifstream file(path == nullptr ? "" : path);
  machine.there = file.is_open();
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word, name;
    if (!(words >> word)) continue;
    if (word == "driver") {
      words >> machine.driver;
    } else if (word == "isolated") {
      machine.isolated = true;
    } else if (word == "fail") {
      words >> name >> machine.failures[name];
    } else if (word == "gpu") {
      nvmlDevice_st& gpu = machine.gpus.emplace_back();
      words >> gpu.bus_id;
      for (std::string cell; words >> cell;) gpu.cells.push_back(cell);
    } else {
      Refuse(line);
    }
  }
  for (nvmlDevice_st& gpu : machine.gpus) {
    if (gpu.cells.size() != machine.gpus.size()) Refuse(gpu.bus_id);
    Connect(gpu);
  }
  return machine;
}

Machine& The() {
  static Machine machine;
  return machine;
}

int FailureOf(const char* name) {
  const auto found = The().failures.find(name);
  return found == The().failures.end() ? penstock::kNvmlSuccess : found->second;
}

// "0000:3b:00.0" of any number of digits in front.
std::string TailOf(const std::string& bus_id) {
  return bus_id.substr(bus_id.size() - std::min<std::size_t>(bus_id.size(), 12));
}

}  // namespace

extern "C" {
#define PENSTOCK_NVML [[gnu::visibility("default")]] int

PENSTOCK_NVML nvmlInit_v2() {
  The() = Read();
  return The().there ? FailureOf("nvmlInit_v2") : kDriverNotLoaded;
}
PENSTOCK_NVML nvmlShutdown() { return penstock::kNvmlSuccess; }

PENSTOCK_NVML nvmlSystemGetDriverVersion(char* version, unsigned int length) {
  std::snprintf(version, length, "%s", The().driver.c_str());
  return FailureOf("nvmlSystemGetDriverVersion");
}

PENSTOCK_NVML nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, nvmlDevice_st** device) {
  for (nvmlDevice_st& gpu : The().gpus) {
    if (TailOf(gpu.bus_id) != TailOf(bus_id)) continue;
    *device = &gpu;
    return FailureOf("nvmlDeviceGetHandleByPciBusId_v2");
  }
  return kNotFound;
}

PENSTOCK_NVML nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_st* a, nvmlDevice_st* b, int* level) {
  *level = a->levels[static_cast<std::size_t>(b - The().gpus.data())];
  return FailureOf("nvmlDeviceGetTopologyCommonAncestor");
}

PENSTOCK_NVML nvmlDeviceGetNvLinkState(nvmlDevice_st* device, unsigned int link, int* up) {
  if (link >= device->links.size()) return kInvalidArgument;
  *up = 1;
  return FailureOf("nvmlDeviceGetNvLinkState");
}

PENSTOCK_NVML nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_st* device, unsigned int link,
                                                  int* type) {
  *type = device->links[link].type;
  return FailureOf("nvmlDeviceGetNvLinkRemoteDeviceType");
}

PENSTOCK_NVML nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_st* device, unsigned int link,
                                                  PenstockNvmlPci* pci) {
  *pci = {};
  const bool to_gpu = device->links[link].type == penstock::kNvmlLinkToGpu;
  const std::string bus_id = to_gpu ? The().gpus[device->links[link].to].bus_id : kSwitchBusId;
  std::snprintf(pci->bus_id, sizeof(pci->bus_id), "0000%s", bus_id.c_str());
  if (std::sscanf(bus_id.c_str(), "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3) {
    Refuse(bus_id);
  }
  return FailureOf("nvmlDeviceGetNvLinkRemotePciInfo_v2");
}

PENSTOCK_NVML nvmlDeviceGetP2PStatus(nvmlDevice_st*, nvmlDevice_st*, int, int* status) {
  *status = The().isolated ? 5 : 0;  // NVML_P2P_STATUS_NOT_SUPPORTED
  return FailureOf("nvmlDeviceGetP2PStatus");
}

[[gnu::visibility("default")]] const char* nvmlErrorString(int error) {
  return error == kDriverNotLoaded ? "Driver Not Loaded" : "error of a test";
}
}
