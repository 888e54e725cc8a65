// SPDX-License-Identifier: Apache-2.0
// What --device and deployment files call the devices that compute: "cpu", "paced", "cuda" and
// "cuda:N,M", where the numbers count the GPUs that the process may see, from 0. "cuda" is the
// first one, or, for a model that is split over several, the first ones.
//
// Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace penstock {

inline constexpr int kGpusMax = 64;  // Numbers of GPUs are below.

// The GPUs that `device` names, in its order; for "cuda" the first `count`. Nothing where it names
// none.
std::optional<std::vector<int>> GpusOf(std::string_view device, std::int32_t count = 1);

// Likewise, of a device that names some: one for each of `tp` shards of each of `pp` stages, stage
// by stage. INVALID_ARGUMENT with the numbers where it names another number of them, or one of them
// twice.
absl::StatusOr<std::vector<int>> GpusOfShards(std::string_view device, std::int32_t tp,
                                              std::int32_t pp = 1);

// The other way round: "cuda", "cuda:1", "cuda:0,1".
std::string DeviceOfGpus(std::span<const int> gpus);

}  // namespace penstock
