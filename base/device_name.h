// SPDX-License-Identifier: Apache-2.0
// What --device and deployment files call the devices that compute: "cpu", "paced", "cuda" and
// "cuda:N", where N counts the GPUs that the process may see, from 0. "cuda" is "cuda:0".
//
// Pure functions.
#pragma once

#include <charconv>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace penstock {

inline constexpr int kGpusMax = 64;  // Numbers of GPUs are below.

// The GPU that `device` names; nothing where it names none.
inline std::optional<int> GpuOf(std::string_view device) {
  constexpr std::string_view kCuda = "cuda";
  if (!device.starts_with(kCuda)) return std::nullopt;
  device.remove_prefix(kCuda.size());
  if (device.empty()) return 0;
  if (device.front() != ':') return std::nullopt;
  device.remove_prefix(1);
  unsigned gpu = 0;
  const auto [end, error] = std::from_chars(device.data(), device.data() + device.size(), gpu);
  if (error != std::errc() || end != device.data() + device.size() || gpu >= kGpusMax) {
    return std::nullopt;
  }
  return static_cast<int>(gpu);
}

// "cuda", "cuda:1"
inline std::string DeviceOfGpu(int gpu) {
  return gpu == 0 ? "cuda" : "cuda:" + std::to_string(gpu);
}

}  // namespace penstock
