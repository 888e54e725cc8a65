// SPDX-License-Identifier: Apache-2.0
// An hour of made-up traffic to try policies on: conversations and shared documents. The same options
// make the same trace.
//
// Conversations open with one of a few system prompts and go on for a number of turns; each prompt is
// the whole conversation so far, and the user thinks between two turns. Documents are asked about by
// many: a prompt is a system prompt, a document, and a question of its own; which document, is a
// matter of popularity (Zipf), and documents come and go. Some of those who ask go on asking about
// theirs.
#pragma once

#include <cstdint>
#include <vector>

#include "kvstore/replay.h"

namespace penstock::kvstore {

struct MadeTraceOptions {
  std::uint64_t seed = 1;
  double seconds = 3600;
  double requests_per_second = 3.3;
  double document_share = 0.3;    // Of the conversations: about a document.
  std::int32_t documents = 400;   // At any time.
  double zipf = 0.9;              // The k-th most popular is asked for as often as k^-zipf.
  double document_life_s = 1800;  // Mean, until another takes its place.
};

struct MadeRequest {
  ReplayRequest request;
  std::int32_t output_tokens = 1;
};

inline constexpr std::int32_t kMadeBlockTokens = 512;

// In order of arrival. CHECKs that the options are in range: all above 0, shares at most 1.
std::vector<MadeRequest> MakeChatsAndDocuments(const MadeTraceOptions& options);

}  // namespace penstock::kvstore
