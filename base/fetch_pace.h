// SPDX-License-Identifier: Apache-2.0
// Fetching blocks of a prompt beside computing them: a worker computes from the front, blocks come
// from the back, both meet. Whether that pays, and when they meet.
//
// What is computed meanwhile is work that a fast fetch would have saved, in chunks that do not stop
// at once. So computing begins at once only beside a fetch that takes a good part of what computing
// its blocks would; beside a fast one it begins once that has turned out slower.
//
// Pure functions; any thread.
#pragma once

#include <algorithm>

namespace penstock {

// In seconds, both of the same blocks, as predicted.
struct FetchPace {
  // Less than this a fetch is let alone: about what a worker takes to begin and end a pass.
  static constexpr double kAlone = 0.02;
  // Of computing: a way that is slower saves less than a third, which no prediction is sure of.
  static constexpr double kSlowest = 2;

  double fetch = 0;
  double compute = 0;

  // A fifth of the fetch is saved at least.
  bool beside() const { return fetch >= kAlone && 4 * fetch >= compute; }
  // When computing begins, from when the fetch does.
  double head_start() const { return beside() ? 0 : std::max(2 * fetch, kAlone); }
  // Of the blocks, how many are computed until both meet.
  double share() const { return fetch + compute > 0 ? fetch / (fetch + compute) : 1; }
  // Until all blocks are there.
  double together() const { return beside() ? compute * share() : fetch; }
  // Against computing all; 0 or less: fetching does not pay.
  double saved() const {
    if (!beside()) return compute - fetch;
    return fetch <= kSlowest * compute ? compute - together() : 0;
  }
};

}  // namespace penstock
