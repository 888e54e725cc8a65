// SPDX-License-Identifier: Apache-2.0
// What the machine of device/cuda_standin.h is told from outside, for tests of whole processes.
#pragma once

#include "device/cuda_standin.h"

namespace penstock::cuda_standin {

// What PENSTOCK_CUDA_MACHINE says, such as "devices=8,unlike,faults=FOLDER": Machine's members of
// these names. Aborts where it says anything else.
Machine MachineOfEnvironment();

// The number in the file of this name in Machine::faults, which is taken away; 0 where there is none.
int TakePlantedFault(const Machine& machine, const std::string& name);

}  // namespace penstock::cuda_standin
