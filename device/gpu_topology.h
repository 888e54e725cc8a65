// SPDX-License-Identifier: Apache-2.0
// How near a machine's GPUs are to each other and to its network cards: what placing workers goes by
// (cli/gpu_placement.h), and what `penstock doctor` prints.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "device/cuda_plugin.h"
#include "device/nvml.h"
#include "device/pci_tree.h"

namespace penstock {

// Between two GPUs.
struct GpuPath {
  int nvlinks = 0;  // Of the one to the other, by themselves or through NVSwitch.
  PciPath pci = PciPath::kUnknown;
};
// The lower the nearer: more NVLinks before fewer, any before none, then by PciPath. 0 for one and
// the same GPU. Sums may be compared.
int Distance(const GpuPath& path);
std::string ToString(const GpuPath& path);  // "NV18", "PIX"
// "18 NVLinks", "one PCIe switch".
std::string Describe(const GpuPath& path);

struct GpuTopology {
  std::vector<std::string> bus_ids = {};  // By the GPUs' numbers; empty where one did not answer.
  std::vector<GpuPath> paths = {};        // [gpus, gpus], alike both ways.
  std::vector<Nic> nics = {};
  std::vector<PciPath> nic_paths = {};  // [gpus, nics]
  std::string driver_version = {};      // "580.65.06"; empty: not known.
  std::string why_no_nvml = {};         // Not empty: of NVLinks nothing is known.

  std::size_t gpus() const { return bus_ids.size(); }
  const GpuPath& Path(std::size_t a, std::size_t b) const { return paths[a * gpus() + b]; }
  PciPath NicPath(std::size_t gpu, std::size_t nic) const {
    return nic_paths[gpu * nics.size() + nic];
  }
};

// GPUs at these places: as `nvml` says where it is there and knows, else as `sys` ("/sys") shows.
GpuTopology FindTopology(const std::vector<std::string>& bus_ids,
                         const absl::StatusOr<std::unique_ptr<Nvml>>& nvml, const std::string& sys);
// Of all that the process may see, by their numbers there. UNAVAILABLE as FindGpus.
absl::StatusOr<GpuTopology> FindTopology(const CudaPlugin& plugin);

}  // namespace penstock
