// SPDX-License-Identifier: Apache-2.0
#include "bench/logits_file.h"

#include <fstream>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "engine/score.h"

namespace penstock::bench {

absl::Status WriteLogits(engine::LocalModel& model, std::span<const TokenId> tokens,
                         const std::string& path) {
  if (tokens.empty()) return absl::InvalidArgumentError("there are no tokens");
  for (const TokenId token : tokens) {
    if (token >= 0 && token < model.architecture().vocab) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "token ", token, " is outside the vocabulary of ", model.architecture().vocab));
  }
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::KvPool> pool, model.MakePool());
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::StepRunner> pass, model.MakeRunner(*pool));
  RETURN_IF_ERROR(
      engine::ForEachLogits(*pass, *pool, tokens, [&](std::int32_t, std::span<const float> row) {
        out.write(reinterpret_cast<const char*>(row.data()),
                  static_cast<std::streamsize>(row.size_bytes()));
      }));
  out.flush();
  if (!out) return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

}  // namespace penstock::bench
