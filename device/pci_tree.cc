// SPDX-License-Identifier: Apache-2.0
#include "device/pci_tree.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace penstock {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kSmallFile = 4096;
constexpr std::size_t kNicsMax = 256;

// "0000:3b:00.0"
bool IsAddress(std::string_view name) {
  return name.size() == 12 && name[4] == ':' && name[7] == ':' && name[10] == '.';
}

int ReadInt(const fs::path& path, int otherwise) {
  const absl::StatusOr<std::string> text = ReadFile(path.string(), kSmallFile);
  int value = otherwise;
  if (text.ok()) std::from_chars(text->data(), text->data() + text->size(), value);
  return value;
}

// Of the device that a link of the system's leads to. What a bus of its own has below its PCI device
// ("virtio0") is left out.
PciPlace PlaceOf(const fs::path& link) {
  PciPlace place;
  std::error_code error;
  const fs::path device = fs::canonical(link, error);
  if (error) return place;
  fs::path folder, own;
  for (const fs::path& part : device) {
    folder /= part;
    const std::string name = part.string();
    const bool root = name.starts_with("pci") && place.path.empty();
    if (!root && !(IsAddress(name) && !place.path.empty())) continue;
    place.path.push_back(name);
    own = folder;
  }
  if (!place.path.empty()) place.numa = ReadInt(own / "numa_node", -1);
  return place;
}

std::vector<std::string> NamesIn(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace

std::string_view ToString(PciPath path) {
  switch (path) {
    case PciPath::kSame:
      return "X";
    case PciPath::kSwitch:
      return "PIX";
    case PciPath::kSwitches:
      return "PXB";
    case PciPath::kHostBridge:
      return "PHB";
    case PciPath::kSocket:
      return "NODE";
    case PciPath::kAcross:
      return "SYS";
    case PciPath::kUnknown:
      return "?";
  }
  return "?";
}

PciPath Between(const PciPlace& a, const PciPlace& b) {
  if (a.path.empty() || b.path.empty()) return PciPath::kUnknown;
  const std::size_t common =
      static_cast<std::size_t>(std::ranges::mismatch(a.path, b.path).in1 - a.path.begin());
  if (common == a.path.size() && common == b.path.size()) return PciPath::kSame;
  if (common == 0) {
    if (a.numa < 0 || b.numa < 0) return PciPath::kUnknown;
    return a.numa == b.numa ? PciPath::kSocket : PciPath::kAcross;
  }
  if (common == 1) return PciPath::kHostBridge;
  // Below a switch's upstream port are one port of its own for each device, and the device.
  const std::size_t below = std::max(a.path.size(), b.path.size()) - common;
  return below <= 2 ? PciPath::kSwitch : PciPath::kSwitches;
}

PciPlace FindPciPlace(const std::string& sys, std::string_view bus_id) {
  // NVML's have a domain of eight digits.
  if (bus_id.size() > 12) bus_id.remove_prefix(bus_id.size() - 12);
  std::string name(bus_id);
  std::ranges::transform(name, name.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return IsAddress(name) ? PlaceOf(fs::path(sys) / "bus/pci/devices" / name) : PciPlace{};
}

std::string NameOf(const Nic& nic) {
  if (nic.rdma.empty() || nic.interface.empty()) return nic.rdma + nic.interface;
  return absl::StrCat(nic.rdma, " (", nic.interface, ")");
}

std::vector<Nic> FindNics(const std::string& sys) {
  std::map<std::vector<std::string>, Nic> by_path;
  for (const auto& [folder, member] :
       {std::pair{"class/infiniband", &Nic::rdma}, {"class/net", &Nic::interface}}) {
    for (const std::string& name : NamesIn(fs::path(sys) / folder)) {
      const PciPlace place = PlaceOf(fs::path(sys) / folder / name / "device");
      if (place.path.empty() || by_path.size() >= kNicsMax) continue;
      Nic& nic = by_path[place.path];
      nic.place = place;
      if ((nic.*member).empty()) nic.*member = name;
    }
  }
  std::vector<Nic> nics;
  for (auto& [path, nic] : by_path) nics.push_back(std::move(nic));
  std::ranges::sort(nics, {}, NameOf);
  return nics;
}

}  // namespace penstock
