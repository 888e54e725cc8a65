// SPDX-License-Identifier: Apache-2.0
// The engine on a real model. Apart from engine.cc, which knows no more than StepRunner.
#include "base/status.h"
#include "engine/engine.h"
#include "engine/model_parts.h"

namespace penstock::engine {

absl::StatusOr<std::unique_ptr<Engine>> Engine::Make(const Parts& parts, const Options& options) {
  RunnerParts on;
  ASSIGN_OR_RETURN(on.pool,
                   MakePool(*parts.architecture, parts.shards, parts.kv_dtype, options.pool));
  ASSIGN_OR_RETURN(on.runner, MakeRunner(*parts.architecture, parts.shards, *on.pool,
                                         {.rows_max = options.step_tokens,
                                          .logit_rows_max = options.sequences_max,
                                          .collectives = parts.collectives,
                                          .exchange_failed = parts.exchange_failed}));
  if (parts.shards.size() == 1) {
    on.pool->set_writer(parts.shards[0].ops->stream());
    RETURN_IF_ERROR(on.pool->MakeEncoder(*parts.shards[0].device, *parts.shards[0].ops));
  }
  on.vocab = parts.architecture->vocab;
  on.context_tokens_max = parts.architecture->context_tokens_max;
  on.spaces = parts.spaces;
  on.end_of_generation = parts.end_of_generation;
  return MakeOn(std::move(on), options);
}

}  // namespace penstock::engine
