// SPDX-License-Identifier: Apache-2.0
// As what copies a worker keeps its blocks in the KV store, and which it may fetch: flags, and the
// model's quality record (kvstore/quality_record.h), which alone allows copies with a loss.
#pragma once

#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "engine/local_model.h"
#include "kvstore/client/keeper.h"

namespace penstock::cli {

struct StoreCodecFlags {
  std::string codec = "raw";   // Of exact copies, or "auto", or "none".
  std::string lossy = "none";  // Of a copy with a loss, beside it.
  double max_kl = 0;           // Mean KL of copies that are kept or fetched; 0: exact ones alone.
  std::string quality_record;  // Empty: beside the model.
};
void AddStoreCodecFlags(CLI::App& command, StoreCodecFlags& flags);

struct StoreCodecs {
  std::vector<kvstore::Keeper::Form> kept;
  bool choose = false;  // As Keeper::Options.
  std::vector<kvstore::Keeper::Form> fetched;
};
// INVALID_ARGUMENT, naming the flag: nothing would be kept, the codec takes no KV of the model's dtype
// (both names), or its recorded mean KL is above the budget (both numbers). NOT_FOUND: copies with a loss are wanted and there is no record; and what
// ParseQualityRecord and CodecsWithin say. `model` is loaded.
absl::StatusOr<StoreCodecs> MakeStoreCodecs(const StoreCodecFlags& flags,
                                            const engine::LocalModel& model);

// Where records are kept: beside the model's file or folder.
std::string QualityRecordPath(const std::string& model_path, const std::string& weights,
                              KvDtype dtype);

}  // namespace penstock::cli
