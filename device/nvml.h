// SPDX-License-Identifier: Apache-2.0
// The NVIDIA driver's management library, opened at run time: how GPUs are connected. A machine
// without it, or whose library fails, is no error for those who ask: they know less.
//
// Any thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "device/nvml_api.h"
#include "device/pci_tree.h"

namespace penstock {

inline constexpr char kNvmlFile[] = "libnvidia-ml.so.1";

class Nvml {
 public:
  // UNAVAILABLE: no such library, one without a function that is needed, or one that does not begin
  // (no driver), with the reason.
  static absl::StatusOr<std::unique_ptr<Nvml>> Open(const std::string& file = kNvmlFile);
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  std::string DriverVersion() const;  // "580.65.06"; empty: it does not say.
  // NOT_FOUND: it knows no GPU at this place, with what it said.
  absl::StatusOr<NvmlDevice> Find(const std::string& bus_id) const;
  PciPath Between(NvmlDevice a, NvmlDevice b) const;  // kUnknown where it does not say.
  // NVLinks that are up: those to a switch, and the others' ends, one for each link.
  struct Links {
    int to_switches = 0;
    std::vector<std::string> ends = {};  // "0000:3b:00"
  };
  Links LinksOf(NvmlDevice device) const;
  // Whether `a` reaches the memory of `b` by NVLink. True where the library does not say.
  bool ReachesByNvLink(NvmlDevice a, NvmlDevice b) const;

 private:
  explicit Nvml(void* library) : library_(library) {}
  absl::Status Load();
  std::string ErrorText(int error) const;

  void* const library_;
  NvmlApi api_ = {};
  bool begun_ = false;
};

// "0000:3b:00", of a bus id as FindPciPlace takes it: an NVLink's end names no function.
std::string PciSlotOf(const std::string& bus_id);

}  // namespace penstock
