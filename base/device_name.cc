// SPDX-License-Identifier: Apache-2.0
#include "base/device_name.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <system_error>

#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock {
namespace {

constexpr std::string_view kCuda = "cuda";

}  // namespace

std::optional<std::vector<int>> GpusOf(std::string_view device, std::int32_t count) {
  if (!device.starts_with(kCuda)) return std::nullopt;
  device.remove_prefix(kCuda.size());
  std::vector<int> gpus;
  if (device.empty()) {
    gpus.resize(static_cast<std::size_t>(count));
    std::iota(gpus.begin(), gpus.end(), 0);
    return gpus;
  }
  // Behind the colon, and behind each comma, a number.
  for (char before = ':'; !device.empty(); before = ',') {
    if (device.front() != before || gpus.size() == kGpusMax) return std::nullopt;
    device.remove_prefix(1);
    unsigned gpu = 0;
    const auto [end, error] = std::from_chars(device.data(), device.data() + device.size(), gpu);
    if (error != std::errc() || gpu >= kGpusMax) return std::nullopt;
    gpus.push_back(static_cast<int>(gpu));
    device.remove_prefix(static_cast<std::size_t>(end - device.data()));
  }
  return gpus;
}

absl::StatusOr<std::vector<int>> GpusOfShards(std::string_view device, std::int32_t tp,
                                              std::int32_t pp) {
  std::optional<std::vector<int>> gpus = GpusOf(device, tp * pp);
  CHECK(gpus.has_value());
  if (gpus->size() != static_cast<std::size_t>(tp) * static_cast<std::size_t>(pp)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "device ", ToAbsl(device), " names ", gpus->size(), gpus->size() == 1 ? " GPU" : " GPUs",
        ", and tp is ", tp, pp == 1 ? std::string() : absl::StrCat(" and pp ", pp),
        pp == 1 ? ": each shard takes one" : ": each shard of each stage takes one"));
  }
  for (auto gpu = gpus->begin(); gpu != gpus->end(); ++gpu) {
    if (std::find(gpus->begin(), gpu, *gpu) == gpu) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("device ", ToAbsl(device), " names GPU ", *gpu, " twice: shards share none"));
  }
  return *std::move(gpus);
}

std::string DeviceOfGpus(std::span<const int> gpus) {
  std::string device(kCuda);
  if (gpus.size() != 1 || gpus[0] != 0) absl::StrAppend(&device, ":", absl::StrJoin(gpus, ","));
  return device;
}

}  // namespace penstock
