// SPDX-License-Identifier: Apache-2.0
#include "tests/forward_harness.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/status.h"

namespace penstock::tests {

int RowsThatDiffer(const Logits& got, const Logits& want, std::size_t begin) {
  CHECK_LE(begin + got.size(), want.size());
  int differ = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const std::vector<float>& row = want[begin + i];
    differ += got[i].size() != row.size() ||
              std::memcmp(got[i].data(), row.data(), row.size() * sizeof(float)) != 0;
  }
  return differ;
}

absl::StatusOr<std::unique_ptr<ForwardHarness>> ForwardHarness::Make(const std::string& model_path,
                                                                     const Options& options) {
  auto h = std::make_unique<ForwardHarness>();
  ASSIGN_OR_RETURN(h->file_, model::ModelFile::Open(model_path));
  ASSIGN_OR_RETURN(
      h->model_,
      ModelHarness::Make(*h->file_, {.cuda = options.cuda,
                                     .numerics = options.numerics,
                                     .threads = options.threads,
                                     .stages = options.stages,
                                     .shards = options.shards,
                                     .sums = options.sums,
                                     .weights = {.widen_to_f32 = options.float_activations}}));
  ASSIGN_OR_RETURN(h->pool_, engine::MakePool(h->architecture(), h->model_.parts, options.kv_dtype,
                                              {.pool_bytes = options.pool_bytes,
                                               .block_tokens = options.block_tokens,
                                               .page_tokens = options.page_tokens,
                                               .stages = options.stages}));
  ASSIGN_OR_RETURN(h->pass_, engine::MakeRunner(h->architecture(), h->model_.parts, *h->pool_,
                                                {.rows_max = options.rows_max,
                                                 .logit_rows_max = options.rows_max,
                                                 .portion_rows_min = options.portion_rows_min}));
  h->block_tokens_ = options.block_tokens;
  return h;
}

std::size_t ForwardHarness::weights_bytes() const {
  std::size_t bytes = 0;
  for (const auto& weights : model_.weights) bytes += weights->bytes();
  return bytes;
}

ForwardHarness::Sequence ForwardHarness::NewSequence() const {
  return {.tokens = {},
          .slabs =
              std::vector<std::vector<engine::SlabRef>>(static_cast<std::size_t>(pool_->groups()))};
}

ForwardHarness::Sequence ForwardHarness::Share(const Sequence& other, std::int32_t tokens) {
  CHECK_EQ(tokens % block_tokens_, 0);
  Sequence s = NewSequence();
  s.tokens.assign(other.tokens.begin(), other.tokens.begin() + tokens);
  for (std::size_t g = 0; g < s.slabs.size(); ++g) {
    for (std::int32_t b = 0; b < tokens / block_tokens_; ++b) {
      s.slabs[g].push_back(other.slabs[g][static_cast<std::size_t>(b)]);
      pool_->AddRef(static_cast<std::int32_t>(g), s.slabs[g].back());
    }
  }
  return s;
}

void ForwardHarness::Free(Sequence& sequence) {
  for (std::size_t g = 0; g < sequence.slabs.size(); ++g) {
    for (const engine::SlabRef slab : sequence.slabs[g])
      pool_->Release(static_cast<std::int32_t>(g), slab);
  }
  sequence = NewSequence();
}

Logits ForwardHarness::Run(const std::vector<Append>& batch) {
  std::vector<std::vector<engine::SequenceInput::Blocks>> blocks(batch.size());
  std::vector<engine::SequenceInput> inputs;
  std::int32_t logit_rows = 0;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Sequence& s = *batch[i].sequence;
    const auto position = static_cast<std::int32_t>(s.tokens.size());
    s.tokens.insert(s.tokens.end(), batch[i].tokens.begin(), batch[i].tokens.end());
    for (std::size_t g = 0; g < s.slabs.size(); ++g) {
      while (s.slabs[g].size() * static_cast<std::size_t>(block_tokens_) < s.tokens.size()) {
        const std::optional<engine::SlabRef> slab = pool_->Allocate(static_cast<std::int32_t>(g));
        CHECK(slab.has_value());
        s.slabs[g].push_back(*slab);
      }
      blocks[i].push_back({s.slabs[g], 0});
    }
    const std::int32_t rows =
        std::min(batch[i].logit_rows, static_cast<std::int32_t>(batch[i].tokens.size()));
    inputs.push_back(
        {.tokens = batch[i].tokens, .position = position, .blocks = blocks[i], .logit_rows = rows});
    logit_rows += rows;
  }
  pass_->Run(inputs, {}, {});
  std::vector<std::vector<float>> logits;
  for (std::int32_t r = 0; r < logit_rows; ++r) {
    const std::span<const float> row = pass_->logits(r);
    logits.emplace_back(row.begin(), row.end());
  }
  return logits;
}

Logits ForwardHarness::RunChunked(Sequence& sequence, const std::vector<TokenId>& tokens,
                                  std::int32_t chunk_tokens) {
  std::vector<std::vector<float>> logits;
  for (std::size_t begin = 0; begin < tokens.size();
       begin += static_cast<std::size_t>(chunk_tokens)) {
    const std::size_t end = std::min(tokens.size(), begin + static_cast<std::size_t>(chunk_tokens));
    std::vector<TokenId> chunk(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                               tokens.begin() + static_cast<std::ptrdiff_t>(end));
    for (std::vector<float>& row : Run({{&sequence, std::move(chunk), chunk_tokens}}))
      logits.push_back(std::move(row));
  }
  return logits;
}

std::string CachedModel(const std::string& name) {
  const std::filesystem::path path =
      std::filesystem::path(PENSTOCK_SOURCE_DIR) / ".cache" / "models" / name;
  return std::filesystem::exists(path) ? path.string() : std::string();
}

}  // namespace penstock::tests
