// SPDX-License-Identifier: Apache-2.0
// What kernels/simt.h tells whoever watches a kernel run: kernels/simt_race.cc. Calls come from the OS
// thread of the launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/simt.h"

namespace penstock::simt {

class Observer {
 public:
  virtual ~Observer() = default;
  // Fiber stacks lie in [stacks, stacks + stacks_bytes); they are private to their threads.
  // early: a thread is not ordered after earlier launches since Synchronize until ThreadWaited.
  virtual void LaunchBegins(const void* stacks, std::size_t stacks_bytes, bool early) = 0;
  virtual void ThreadWaited() = 0;
  // As those of simt.h, between launches.
  virtual void Synchronize() = 0;
  virtual void Forbid(const void* p, std::size_t bytes) = 0;
  virtual void Allow(const void* p) = 0;
  // Returns what was wrong, which fails the launch; empty: nothing.
  virtual std::string LaunchEnds() = 0;
  virtual void BlockBegins(unsigned threads) = 0;
  virtual void BlockEnds() = 0;
  // From now on `thread` runs; -1: none of the block.
  virtual void ThreadRuns(int thread) = 0;
  virtual void BlockBarrier() = 0;
  virtual void WarpBarrier(unsigned warp, unsigned mask) = 0;
  // Shared memory of the block, until it ends.
  virtual void SharedMemory(const void* p, std::size_t bytes) = 0;
  virtual void Access(const void* p, std::size_t bytes, AccessKind kind, Site at) = 0;
  // An asynchronous copy of 16 bytes to `shared` begins (from null: zeros), or has been waited for.
  virtual void CopyBegins(const void* shared, const void* global, Site at) = 0;
  virtual void CopyEnds(const void* shared) = 0;
};

// Of this process; null (none) at first. Set before the first launch; never freed.
void SetObserver(Observer* observer);

}  // namespace penstock::simt
