// SPDX-License-Identifier: Apache-2.0
// Where devices sit in a machine's PCI trees, as Linux shows it (/sys), and which network cards are
// near to which GPU.
//
// Pure but for reading files. What the system does not tell is left out: nothing here is an error.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace penstock {

// What lies between two devices, the least first; nvidia-smi's words for it in brackets.
enum class PciPath {
  kSame,        // They are one.
  kSwitch,      // One PCIe switch. [PIX]
  kSwitches,    // Several PCIe switches. [PXB]
  kHostBridge,  // A CPU's host bridge. [PHB]
  kSocket,      // Several host bridges of one CPU socket. [NODE]
  kAcross,      // The link between CPU sockets. [SYS]
  kUnknown,
};
std::string_view ToString(PciPath path);  // "PIX"

struct PciPlace {
  // From the host bridge to the device: "pci0000:3a", "0000:3a:01.0", "0000:3b:00.0". Empty: not known.
  std::vector<std::string> path = {};
  int numa = -1;  // The node of its CPU socket; below 0: the system does not say.
};
PciPath Between(const PciPlace& a, const PciPlace& b);

// Of the PCI device `bus_id` ("0000:3b:00.0", in either case, or with more digits in front).
PciPlace FindPciPlace(const std::string& sys, std::string_view bus_id);

// A network card.
struct Nic {
  std::string interface = {};  // "eth2"; empty where it has none, as InfiniBand may.
  std::string rdma = {};       // "mlx5_0"; empty where it does no RDMA.
  PciPlace place = {};
};
std::string NameOf(const Nic& nic);  // "mlx5_0 (eth2)"
// Those on PCI, by their names; `sys`: "/sys".
std::vector<Nic> FindNics(const std::string& sys);

}  // namespace penstock
