// SPDX-License-Identifier: Apache-2.0
// A stand-in for the part of cuBLASLt that the program uses, for tests without a GPU: linked in its
// place, it offers the same C functions over the memory of device/cuda_standin.h. A product runs on
// the host before the call returns, or when its graph is launched.
//
// What cuBLASLt documents, and what there is of it here; the test is that of
// cublas_lt_standin_test.cc which shows it.
//
//   cuBLASLt                             here                         test
//   ------------------------------------ ---------------------------- ----------------------------
//   D = alpha op(A) op(B) + beta C, of   likewise, of A transposed    Multiplies
//   columns; the bias epilogue adds to   and B not, F16, BF16 and F32
//   every column of D                    into F32, C being D; all
//                                        else is not supported
//   an algorithm has a tile and a split  split-K and the number of    BitsDependOnTheRows
//   of k, which set the order of a sum;  accumulators of a sum change
//   the heuristic picks both by shape    with the rows
//   AlgoInit and AlgoConfigSetAttribute  with split-K 1 and one       PinnedBitsDoNot
//   pin them                             algorithm, each row has the
//                                        same bits in every batch
//   shapes and leading dimensions must   INVALID_VALUE; last_fault    ChecksShapes
//   fit, buffers must be as aligned as   has both numbers             ChecksBuffers
//   the heuristic was told: a bias as
//   the address that it was asked with
//   a split product needs its workspace  likewise                     ChecksTheWorkspace
//   buffers are of the device            likewise                     ChecksBuffers
//   a heuristic may know no algorithm    Faults::no_heuristic         MayKnowNoWayOrFail
//   a product may fail                   Faults::execution_failed     MayKnowNoWayOrFail
//   or be refused, with nothing done     Faults::refused              MayKnowNoWayOrFail
//   a product may be captured            likewise                     IsCaptured
//   no driver: Create says               likewise                     NeedsADriver
//   NOT_INITIALIZED
//
// Not here: other types, epilogues, batches, scales, other orders of matrices, searches, any speed.
#pragma once

#include <cstdint>
#include <string>

namespace penstock::cublas_lt_standin {

// Of this process, from now on. What it begins with is in its environment:
// PENSTOCK_CUBLASLT_FAULTS="absent,version=111103,no_heuristic,execution_failed,refused=15".
struct Faults {
  bool absent = false;  // Cannot be opened. Asked once, as the version is.
  int version = 0;      // Above 0: what it says it is.
  bool no_heuristic = false;
  bool execution_failed = false;
  int refused = 0;  // A cublasStatus_t: what products give, without being done.
};
void Set(const Faults& faults);
bool IsAbsent();

struct Counts {
  std::int64_t handles = 0;   // There now.
  std::int64_t objects = 0;   // Descriptors, layouts and preferences that are there now.
  std::int64_t searches = 0;  // Heuristics ever asked.
  std::int64_t products = 0;  // Ever computed.
  std::string last_fault;
};
Counts Now();

}  // namespace penstock::cublas_lt_standin
