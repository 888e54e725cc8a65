// SPDX-License-Identifier: Apache-2.0
// The few functions of NVML (libnvidia-ml.so.1, a part of the NVIDIA driver) that tell how GPUs are
// connected, as its API documents them. Machines that build this program have no nvml.h, and those
// without a driver no library: device/nvml.h opens it at run time.
#pragma once

extern "C" {

struct nvmlDevice_st;

// As NVML lays it out.
struct PenstockNvmlPci {
  char bus_id_legacy[16];
  unsigned int domain;
  unsigned int bus;
  unsigned int device;
  unsigned int pci_device_id;
  unsigned int pci_subsystem_id;
  char bus_id[32];
};

}  // extern "C"

namespace penstock {

using NvmlDevice = nvmlDevice_st*;

// All but the last give an nvmlReturn_t, 0 for success. Any thread.
struct NvmlApi {
  int (*init)();                                              // nvmlInit_v2
  int (*shutdown)();                                          // nvmlShutdown; as often as init.
  int (*driver_version)(char* version, unsigned int length);  // nvmlSystemGetDriverVersion
  int (*device_by_bus_id)(const char* bus_id,
                          NvmlDevice* device);  // nvmlDeviceGetHandleByPciBusId_v2
  // nvmlDeviceGetTopologyCommonAncestor: one of the levels below.
  int (*common_ancestor)(NvmlDevice a, NvmlDevice b, int* level);
  // nvmlDeviceGetNvLinkState: 1 where that link is up. An error from the first one that is not there.
  int (*nvlink_state)(NvmlDevice device, unsigned int link, int* up);
  // nvmlDeviceGetNvLinkRemoteDeviceType: one of the types below. Absent from old drivers: null.
  int (*nvlink_remote_type)(NvmlDevice device, unsigned int link, int* type);
  // nvmlDeviceGetNvLinkRemotePciInfo_v2
  int (*nvlink_remote_pci)(NvmlDevice device, unsigned int link, PenstockNvmlPci* pci);
  // nvmlDeviceGetP2PStatus: 0 where `a` reaches the memory of `b` in the way of `index`.
  int (*p2p_status)(NvmlDevice a, NvmlDevice b, int index, int* status);
  const char* (*error_text)(int error);  // nvmlErrorString
};

inline constexpr int kNvmlSuccess = 0;
inline constexpr unsigned int kNvmlLinksMax = 18;  // NVML_NVLINK_MAX_LINKS
// nvmlGpuTopologyLevel_t
inline constexpr int kNvmlInternal = 0;
inline constexpr int kNvmlSingle = 10;
inline constexpr int kNvmlMultiple = 20;
inline constexpr int kNvmlHostBridge = 30;
inline constexpr int kNvmlNode = 40;
inline constexpr int kNvmlSystem = 50;
// nvmlIntNvLinkDeviceType_t
inline constexpr int kNvmlLinkToGpu = 0;
inline constexpr int kNvmlLinkToSwitch = 2;
// nvmlGpuP2PCapsIndex_t
inline constexpr int kNvmlP2pNvLink = 2;

}  // namespace penstock
