// SPDX-License-Identifier: Apache-2.0
#include "tests/engine_harness.h"

#include "base/check.h"
#include "base/check_ok.h"

namespace penstock::tests {

void PrintTo(const Drawn& drawn, std::ostream* out) {
  *out << drawn.token << " (" << drawn.logprob << ")";
}

EngineHarness::EngineHarness(const model::ModelFile& file, const Options& options,
                             engine::Engine::Options engine)
    : model_(*ModelHarness::Make(file, {.cuda = options.cuda,
                                        .numerics = options.numerics,
                                        .threads = options.threads,
                                        .stages = options.stages,
                                        .shards = options.shards,
                                        .sums = options.sums,
                                        .weights = {.digest = true}})) {
  engine.pool.stages = options.stages;
  engine_ = *engine::Engine::Make({.architecture = &file.architecture(),
                                   .shards = model_.parts,
                                   .kv_dtype = options.kv_dtype,
                                   .spaces = {},
                                   .end_of_generation = {}},
                                  engine);
}

Answers EngineHarness::Run(std::span<const engine::Request> requests) {
  std::map<engine::RequestId, std::size_t> index;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const absl::StatusOr<engine::RequestId> id = engine_->Submit(requests[i]);
    CHECK_OK(id.status());
    index[*id] = i;
  }
  Answers answers;
  while (!engine_->idle()) {
    const engine::StepReport report = engine_->Step();
    preempted_ |= report.preempted > 0;
    swapped_ |= engine_->swap_bytes_used() > 0;
    for (const engine::TokenOutput& output : report.outputs) {
      CHECK(output.token.has_value());
      Drawn drawn = {output.token->token, *output.token->logprob, {}};
      for (const engine::TokenLogprob& top : output.token->top) {
        drawn.top.emplace_back(top.token, top.logprob);
      }
      answers[{index.at(output.request), output.choice}].push_back(std::move(drawn));
    }
  }
  for (const engine::KvPool::GroupStats& group : engine_->PoolStats().groups)
    CHECK_EQ(group.slabs_held, 0);
  return answers;
}

}  // namespace penstock::tests
