// SPDX-License-Identifier: Apache-2.0
// The model that simulated gateways serve: a tokenizer, of which nothing but its being there counts.
#pragma once

#include <memory>

#include "gateway/relay_state.h"

namespace penstock::sim {

// CHECKs that the test's own model can be opened.
std::shared_ptr<const gateway::ModelFront> SimModel();

}  // namespace penstock::sim
