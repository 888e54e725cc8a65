// SPDX-License-Identifier: Apache-2.0
// Sampling parameters to and from the wire, for every struct that has them under their names
// (engine/sampler.h's, gateway/request.h's): what this folder must not know.
#pragma once

#include "penstock/v1/common.pb.h"

namespace penstock::rpc {

// All but the seed, whose absence each side takes in its own way; a negative `logprobs` stands for
// none.
template <typename Params>
void SamplingToProto(const Params& from, v1::SamplingParams* to) {
  to->set_temperature(from.temperature);
  to->set_top_k(from.top_k);
  to->set_top_p(from.top_p);
  to->set_min_p(from.min_p);
  to->set_typical_p(from.typical_p);
  to->set_repetition_penalty(from.repetition_penalty);
  to->set_presence_penalty(from.presence_penalty);
  to->set_frequency_penalty(from.frequency_penalty);
  for (const auto& [token, bias] : from.logit_bias) (*to->mutable_logit_bias())[token] = bias;
  if (from.logprobs >= 0) to->set_logprobs(from.logprobs);
}

// All but the seed and `logprobs`; what the message lacks stays as it is.
template <typename Params>
void SamplingFromProto(const v1::SamplingParams& from, Params* to) {
  if (from.has_temperature()) to->temperature = from.temperature();
  to->top_k = from.top_k();
  if (from.has_top_p()) to->top_p = from.top_p();
  to->min_p = from.min_p();
  if (from.has_typical_p()) to->typical_p = from.typical_p();
  if (from.has_repetition_penalty()) to->repetition_penalty = from.repetition_penalty();
  to->presence_penalty = from.presence_penalty();
  to->frequency_penalty = from.frequency_penalty();
  for (const auto& [token, bias] : from.logit_bias()) to->logit_bias[token] = bias;
}

}  // namespace penstock::rpc
