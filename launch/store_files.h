// SPDX-License-Identifier: Apache-2.0
// Files that the processes of a deployment with store nodes need before they start: the cluster's
// secret, and directories of disk tiers.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "launch/deployment.h"

namespace penstock::launch {

// The file with the secret, for processes of `host`: the deployment's, or one that MakeStoreFiles
// makes. That lies beside the blocks of a disk tier where there is one, since only who has it can
// read them again; else in `folder`, which ends with the run. Empty: there are no store nodes.
std::string SecretFile(const Deployment& deployment, std::size_t host, std::string_view folder);

// Of a node, in the directory of its group; empty: it has no disk tier.
std::string DiskOf(const StoreNode& store);

// Makes what is not there. A secret is 32 random bytes in hexadecimal, for this user alone.
// UNAVAILABLE naming what cannot be made.
absl::Status MakeStoreFiles(const Deployment& deployment, std::size_t host,
                            std::string_view folder);

}  // namespace penstock::launch
