// SPDX-License-Identifier: Apache-2.0
#include "bench/logits_file.h"

#include <algorithm>
#include <fstream>
#include <memory>
#include <optional>
#include <vector>

#include "base/status.h"

namespace penstock::bench {
namespace {

// Blocks of one sequence, one list per group; windows let go of nothing.
class Blocks {
 public:
  explicit Blocks(engine::KvPool& pool)
      : pool_(pool), slabs_(static_cast<std::size_t>(pool.groups())) {}
  ~Blocks() {
    for (std::int32_t group = 0; group < pool_.groups(); ++group) {
      for (const engine::SlabRef slab : slabs_[static_cast<std::size_t>(group)]) {
        pool_.Release(group, slab);
      }
    }
  }
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;

  absl::Status GrowTo(std::size_t tokens) {
    for (std::int32_t group = 0; group < pool_.groups(); ++group) {
      auto& slabs = slabs_[static_cast<std::size_t>(group)];
      while (slabs.size() * static_cast<std::size_t>(pool_.block_tokens()) < tokens) {
        const std::optional<engine::SlabRef> slab = pool_.Allocate(group);
        if (!slab.has_value()) {
          return absl::ResourceExhaustedError(absl::StrCat(
              tokens, " tokens do not fit into a pool of ", pool_.stats().bytes_budget, " bytes"));
        }
        slabs.push_back(*slab);
      }
    }
    return absl::OkStatus();
  }

  std::vector<engine::SequenceInput::Blocks> View() const {
    std::vector<engine::SequenceInput::Blocks> view;
    for (const auto& slabs : slabs_) view.push_back({slabs, 0});
    return view;
  }

 private:
  engine::KvPool& pool_;
  std::vector<std::vector<engine::SlabRef>> slabs_;
};

}  // namespace

absl::Status WriteLogits(engine::LocalModel& model, std::span<const TokenId> tokens,
                         const std::string& path) {
  if (tokens.empty()) return absl::InvalidArgumentError("there are no tokens");
  for (const TokenId token : tokens) {
    if (token < 0 || token >= model.architecture().vocab) {
      return absl::InvalidArgumentError(absl::StrCat(
          "token ", token, " is outside the vocabulary of ", model.architecture().vocab));
    }
  }
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  if (!out) return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::KvPool> pool, model.MakePool());
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::ForwardPass> pass, model.MakeForwardPass(*pool));
  Blocks blocks(*pool);
  const auto chunk = static_cast<std::size_t>(std::min(pass->rows_max(), pass->logit_rows_max()));
  for (std::size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const std::size_t rows = std::min(chunk, tokens.size() - begin);
    RETURN_IF_ERROR(blocks.GrowTo(begin + rows));
    const std::vector<engine::SequenceInput::Blocks> view = blocks.View();
    const engine::SequenceInput input = {.tokens = tokens.subspan(begin, rows),
                                         .position = static_cast<std::int32_t>(begin),
                                         .blocks = view,
                                         .logit_rows = static_cast<std::int32_t>(rows)};
    pass->Run({&input, 1}, {});
    for (std::size_t r = 0; r < rows; ++r) {
      const std::span<const float> row = pass->logits(static_cast<std::int32_t>(r));
      out.write(reinterpret_cast<const char*>(row.data()),
                static_cast<std::streamsize>(row.size_bytes()));
    }
  }
  out.flush();
  if (!out) return absl::PermissionDeniedError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

}  // namespace penstock::bench
