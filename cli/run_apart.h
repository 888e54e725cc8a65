// SPDX-License-Identifier: Apache-2.0
// Work in a process of its own, for what would leave traces in this one, or may never return.
#pragma once

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/time.h"

namespace penstock::cli {

// What `work` gives, at most 1 MiB of it, in a copy of this process that ends behind it; nothing else
// of what it does is seen here. To be called while there is one thread. UNAVAILABLE: there is no such
// process, or it died; DEADLINE_EXCEEDED: it was killed after `patience`.
absl::StatusOr<std::string> RunApart(absl::FunctionRef<std::string()> work, Duration patience);

}  // namespace penstock::cli
