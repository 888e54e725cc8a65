// SPDX-License-Identifier: Apache-2.0
#include "device/gpu_topology.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock {
namespace {

// What is known of one GPU.
struct Place {
  PciPlace pci = {};
  std::optional<NvmlDevice> device = {};
  Nvml::Links links = {};
  std::string slot = {};
};

Place PlaceOf(const std::string& bus_id, const Nvml* nvml, const std::string& sys) {
  Place place;
  place.pci = FindPciPlace(sys, bus_id);
  place.slot = PciSlotOf(bus_id);
  if (nvml == nullptr || bus_id.empty()) return place;
  const absl::StatusOr<NvmlDevice> device = nvml->Find(bus_id);
  if (!device.ok()) return place;
  place.device = *device;
  place.links = nvml->LinksOf(*device);
  return place;
}

GpuPath PathBetween(const Place& a, const Place& b, const Nvml* nvml) {
  GpuPath path;
  if (a.device.has_value() && b.device.has_value()) {
    path.pci = nvml->Between(*a.device, *b.device);
    path.nvlinks = static_cast<int>(std::ranges::count(a.links.ends, b.slot));
    const int switched = std::min(a.links.to_switches, b.links.to_switches);
    if (switched > 0 && nvml->ReachesByNvLink(*a.device, *b.device)) path.nvlinks += switched;
  }
  if (path.pci == PciPath::kUnknown) path.pci = Between(a.pci, b.pci);
  return path;
}

}  // namespace

int Distance(const GpuPath& path) {
  if (path.pci == PciPath::kSame) return 0;
  if (path.nvlinks > 0) return 20 - std::min(path.nvlinks, static_cast<int>(kNvmlLinksMax));
  return 20 + 10 * static_cast<int>(path.pci);
}

std::string ToString(const GpuPath& path) {
  if (path.pci == PciPath::kSame || path.nvlinks == 0) return std::string(ToString(path.pci));
  return absl::StrCat("NV", path.nvlinks);
}

std::string Describe(const GpuPath& path) {
  if (path.pci != PciPath::kSame && path.nvlinks > 0) {
    return absl::StrCat(path.nvlinks, path.nvlinks == 1 ? " NVLink" : " NVLinks");
  }
  switch (path.pci) {
    case PciPath::kSame:
      return "one GPU";
    case PciPath::kSwitch:
      return "one PCIe switch";
    case PciPath::kSwitches:
      return "several PCIe switches";
    case PciPath::kHostBridge:
      return "a CPU's host bridge";
    case PciPath::kSocket:
      return "one CPU socket";
    case PciPath::kAcross:
      return "two CPU sockets";
    case PciPath::kUnknown:
      return "an unknown path";
  }
  return "";
}

GpuTopology FindTopology(const std::vector<std::string>& bus_ids,
                         const absl::StatusOr<std::unique_ptr<Nvml>>& nvml,
                         const std::string& sys) {
  const Nvml* const library = nvml.ok() ? nvml->get() : nullptr;
  GpuTopology topology = {.bus_ids = bus_ids, .nics = FindNics(sys)};
  if (library != nullptr) topology.driver_version = library->DriverVersion();
  if (library == nullptr) topology.why_no_nvml = ToStd(nvml.status().message());
  std::vector<Place> places;
  for (const std::string& bus_id : bus_ids) places.push_back(PlaceOf(bus_id, library, sys));
  for (std::size_t a = 0; a < places.size(); ++a) {
    for (std::size_t b = 0; b < places.size(); ++b) {
      // The parts that a GPU is split into have one place.
      const bool same = a == b || (!bus_ids[a].empty() && bus_ids[a] == bus_ids[b]);
      topology.paths.push_back(
          same ? GpuPath{.pci = PciPath::kSame}
               : PathBetween(places[std::min(a, b)], places[std::max(a, b)], library));
    }
    for (const Nic& nic : topology.nics) {
      topology.nic_paths.push_back(Between(places[a].pci, nic.place));
    }
  }
  return topology;
}

absl::StatusOr<GpuTopology> FindTopology(const CudaPlugin& plugin) {
  ASSIGN_OR_RETURN(const CudaSystem system, FindGpus(plugin));
  std::vector<std::string> bus_ids(system.gpus.size());
  for (std::size_t i = 0; i < bus_ids.size(); ++i) {
    char id[32] = {};
    if (plugin.runtime.get_pci_bus_id(id, sizeof(id), static_cast<int>(i)) == kCudaSuccess) {
      bus_ids[i] = id;
    }
  }
  return FindTopology(bus_ids, Nvml::Open(), "/sys");
}

}  // namespace penstock
