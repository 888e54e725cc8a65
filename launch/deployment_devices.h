// SPDX-License-Identifier: Apache-2.0
// What the workers of a group compute on: the keys `device`, `numerics`, `pp`, `tp` and `tp_sum`
// of a deployment file.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "launch/deployment.h"
#include "launch/schema.h"
#include "launch/yaml.h"

namespace penstock::launch {

// Tells `faults` what no worker of the group could begin with, whatever its model. `worker` has what
// `reader` read.
void CheckShards(const SectionReader& reader, const Worker& worker, Faults& faults);

// The device of each of `workers` workers: for all the group's, or, where that names GPUs for all of
// them, an even part. A number of GPUs that fits neither, and a GPU that a worker would have twice,
// is a fault.
std::vector<std::string> DevicesOf(const SectionReader& reader, const Worker& worker,
                                   std::size_t workers, Faults& faults);

}  // namespace penstock::launch
