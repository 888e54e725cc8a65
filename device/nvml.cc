// SPDX-License-Identifier: Apache-2.0
#include "device/nvml.h"

#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"

namespace penstock {
namespace {

template <typename Function>
bool Get(void* library, const char* name, Function& function, std::string& missing) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) missing = name;
  return function != nullptr;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Open(const std::string& file) {
  void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const text = ::dlerror();
    return absl::UnavailableError(
        absl::StrCat("cannot load ", file, ": ", text == nullptr ? "?" : text));
  }
  std::unique_ptr<Nvml> nvml(new Nvml(library));
  if (const absl::Status loaded = nvml->Load(); !loaded.ok()) {
    return absl::UnavailableError(absl::StrCat(file, ": ", loaded.message()));
  }
  return nvml;
}

absl::Status Nvml::Load() {
  std::string missing;
  Get(library_, "nvmlDeviceGetNvLinkRemoteDeviceType", api_.nvlink_remote_type, missing);
  const bool all =
      Get(library_, "nvmlInit_v2", api_.init, missing) &&
      Get(library_, "nvmlShutdown", api_.shutdown, missing) &&
      Get(library_, "nvmlErrorString", api_.error_text, missing) &&
      Get(library_, "nvmlSystemGetDriverVersion", api_.driver_version, missing) &&
      Get(library_, "nvmlDeviceGetHandleByPciBusId_v2", api_.device_by_bus_id, missing) &&
      Get(library_, "nvmlDeviceGetTopologyCommonAncestor", api_.common_ancestor, missing) &&
      Get(library_, "nvmlDeviceGetNvLinkState", api_.nvlink_state, missing) &&
      Get(library_, "nvmlDeviceGetNvLinkRemotePciInfo_v2", api_.nvlink_remote_pci, missing) &&
      Get(library_, "nvmlDeviceGetP2PStatus", api_.p2p_status, missing);
  if (!all) return absl::UnavailableError(absl::StrCat("it has no ", missing));
  const int error = api_.init();
  begun_ = error == kNvmlSuccess;
  return begun_ ? absl::OkStatus() : absl::UnavailableError(ErrorText(error));
}

Nvml::~Nvml() {
  if (begun_) (void)api_.shutdown();
  ::dlclose(library_);
}

std::string Nvml::ErrorText(int error) const {
  const char* const text = api_.error_text(error);
  return absl::StrCat(text == nullptr ? "?" : text, " (", error, ")");
}

std::string Nvml::DriverVersion() const {
  char version[96] = {};
  return api_.driver_version(version, sizeof(version) - 1) == kNvmlSuccess ? version : "";
}

absl::StatusOr<NvmlDevice> Nvml::Find(const std::string& bus_id) const {
  NvmlDevice device = nullptr;
  const int error = api_.device_by_bus_id(bus_id.c_str(), &device);
  if (error == kNvmlSuccess) return device;
  return absl::NotFoundError(absl::StrCat("NVML has no GPU at ", bus_id, ": ", ErrorText(error)));
}

PciPath Nvml::Between(NvmlDevice a, NvmlDevice b) const {
  int level = -1;
  if (api_.common_ancestor(a, b, &level) != kNvmlSuccess) return PciPath::kUnknown;
  switch (level) {
    case kNvmlInternal:  // Two on one board: its switch is between them.
    case kNvmlSingle:
      return PciPath::kSwitch;
    case kNvmlMultiple:
      return PciPath::kSwitches;
    case kNvmlHostBridge:
      return PciPath::kHostBridge;
    case kNvmlNode:
      return PciPath::kSocket;
    case kNvmlSystem:
      return PciPath::kAcross;
    default:
      return PciPath::kUnknown;
  }
}

Nvml::Links Nvml::LinksOf(NvmlDevice device) const {
  Links links;
  for (unsigned int link = 0; link < kNvmlLinksMax; ++link) {
    int up = 0, type = kNvmlLinkToGpu;
    if (api_.nvlink_state(device, link, &up) != kNvmlSuccess || up != 1) continue;
    const bool told = api_.nvlink_remote_type != nullptr &&
                      api_.nvlink_remote_type(device, link, &type) == kNvmlSuccess;
    if (told && type == kNvmlLinkToSwitch) {
      ++links.to_switches;
      continue;
    }
    PenstockNvmlPci pci = {};
    if (api_.nvlink_remote_pci(device, link, &pci) != kNvmlSuccess) continue;
    std::string end = absl::StrFormat("%04x:%02x:%02x", pci.domain, pci.bus, pci.device);
    // Where the driver is too old to tell, what is no GPU is a switch.
    if (!told && !Find(absl::StrCat(end, ".0")).ok()) {
      ++links.to_switches;
    } else {
      links.ends.push_back(std::move(end));
    }
  }
  return links;
}

bool Nvml::ReachesByNvLink(NvmlDevice a, NvmlDevice b) const {
  int status = 0;
  return api_.p2p_status(a, b, kNvmlP2pNvLink, &status) != kNvmlSuccess || status == 0;
}

std::string PciSlotOf(const std::string& bus_id) {
  std::string slot = bus_id.substr(0, bus_id.rfind('.'));
  if (slot.size() > 10) slot.erase(0, slot.size() - 10);
  std::ranges::transform(slot, slot.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return slot;
}

}  // namespace penstock
