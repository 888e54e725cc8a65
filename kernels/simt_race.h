// SPDX-License-Identifier: Apache-2.0
// The race check of GPU kernels: a runtime for code that was compiled, not linked, with
// -fsanitize=thread, whose hooks see every load and store of a kernel. A program that links this
// library has it: a launch fails when two threads touch a byte, one of them writing, without a
// barrier of their block or of their lanes between, unless both are atomic; when two blocks of a
// launch do so at all; when a kernel of GPU_LAUNCH_EARLY does so with an earlier launch before
// WaitForEarlier; when a byte of an asynchronous copy is touched before its wait. Warp operations
// order no memory, as on a GPU. One schedule is enough to see a race, since nothing depends on who
// came first.
//
// An access behind the end of a DeviceBuffer (kernels/cuda_testing.h) fails the launch, too.
//
// It counts bank conflicts as well: 32 banks of 4 bytes serve a warp's request for shared memory, at
// once when no bank has two words to give.
//
// Threads: each OS thread's launches are watched by themselves.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace penstock::simt {

// A line of a kernel that reads or writes shared memory.
struct BankUse {
  std::string where;
  std::uint64_t requests = 0;  // By warps, in the launches' first blocks.
  std::uint64_t rounds = 0;    // That the banks took for them.
  std::uint64_t rounds_min = 0;
  double Ways() const { return static_cast<double>(rounds) / static_cast<double>(rounds_min); }
};

// Of this OS thread's launches since the last call, the most ways first.
std::vector<BankUse> TakeBankUse();

}  // namespace penstock::simt
