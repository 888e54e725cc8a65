// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_model.h"

#include "base/check.h"
#include "sim/sim_messages.h"

namespace penstock::sim {

std::shared_ptr<const gateway::ModelFront> SimModel() {
  static const auto model =
      gateway::ModelFront::Open(kModel, PENSTOCK_SOURCE_DIR "/tests/golden/tiny/llama3");
  CHECK(model.ok());
  return *model;
}

}  // namespace penstock::sim
