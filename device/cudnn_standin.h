// SPDX-License-Identifier: Apache-2.0
// A stand-in for the part of cuDNN's graph API that the program uses, for tests without a GPU:
// linked in its place, it offers the same C functions over the memory of device/cuda_standin.h. It
// does not know what attention is: it runs whatever graph of page loads, products, reductions and
// pointwise operations it is given, one row of the scores after another, in float, rounding where a
// tensor has 16 bits.
//
//   cuDNN                                      here                    test (cudnn_standin_test.cc)
//   ------------------------------------------ ----------------------- ----------------------------
//   attributes have types and counts, some     likewise; misuses       ChecksAttributes
//   must be set, none after Finalize            counted
//   what a descriptor names must be finalized  likewise                ChecksAttributes
//   shapes of an operation must fit            likewise, BAD_PARAM     ChecksShapes
//   an operation's inputs come from the        likewise                ChecksShapes
//   caller or an earlier operation
//   engines may be none for a graph            Faults::unsupported     attention's, in kernels/
//   plans want a workspace                     Faults::workspace_bytes the same; it is written to
//   work goes on after the call, in the        likewise                RunsLater
//   stream of the handle
//   device addresses must be of the device     counted as misuses      ChecksAddresses
//
// Not here: other operations and types, several engines, dynamic shapes, CUDA graphs, any speed.
#pragma once

#include <cstdint>
#include <string>

namespace penstock::cudnn_standin {

// Of this process, from now on.
struct Faults {
  bool unsupported = false;             // No engine.
  bool wrong = false;                   // What comes out is off by a sixteenth.
  bool nan = false;                     // The first of what comes out is a NaN.
  int plan_error = 0;                   // A cudnnStatus_t: how plans are finalized.
  int execute_error = 0;                // How each execution ends.
  std::int64_t workspace_bytes = 1024;  // Of each plan.
};
void Set(const Faults& faults);

struct Counts {
  std::int64_t handles = 0;  // There now.
  std::int64_t descriptors = 0;
  std::int64_t plans = 0;  // Ever made.
  std::int64_t runs = 0;   // Ever ended.
  std::int64_t misuses = 0;
  std::string last_misuse;
};
Counts Now();

}  // namespace penstock::cudnn_standin
