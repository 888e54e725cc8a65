// SPDX-License-Identifier: Apache-2.0
// The part of a deployment file that says which store nodes there are.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "launch/deployment.h"
#include "launch/yaml.h"

namespace penstock::launch {

struct StoreGroups {
  std::vector<StoreNode> nodes = {};
  std::string codec = {};  // Of all groups, as all here.
  std::string lossy = {};
  std::string max_kl = {};
  std::string worker_write = {};
};

// What `kvstore` says; `node` is its value, null where it is absent. `find_host` gives the index of a
// host, and says where there is none of that name. Nodes run where `workers` do unless they name a
// host. Faults go to `faults`.
StoreGroups ReadStoreGroups(const YamlNode* node,
                            const std::function<std::size_t(const std::string&, Mark)>& find_host,
                            const std::vector<Worker>& workers, Faults& faults);

}  // namespace penstock::launch
