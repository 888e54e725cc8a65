// SPDX-License-Identifier: Apache-2.0
// Inside of the stand-in for NCCL.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "device/nccl_standin.h"

namespace penstock::nccl_standin {

// A send or receive, or a copy inside the rank, and how far it is.
struct Operation {
  bool send = false;
  int peer = -1;                    // None of a copy.
  const std::byte* from = nullptr;  // Of a copy.
  std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  ncclComm_t comm = nullptr;
  cudaStream_t stream = nullptr;
  std::uint64_t done = 0;
  bool met = false;    // A receive has the header of its send; a send has sent its own.
  bool asked = false;  // A receive has said that it is there; a send has heard so.
};

Faults FaultsOfEnvironment();  // PENSTOCK_NCCL_FAULTS

// The process's, for ever.
struct State {
  std::mutex mutex;  // Guards all of it.
  std::condition_variable changed;
  Faults faults = FaultsOfEnvironment();
  Counts counts;
};
State& The();
void Fault(const std::string& text);

// Two sockets between a pair, one for each direction: data one way, and a byte for each receive
// that was asked for the other way. Non-blocking.
struct Pair {
  UniqueFd to_peer, from_peer;
};
// Meets another rank; gives up, without sockets, as soon as `stop`.
Pair Meet(const std::string& id, int rank, int peer, const std::atomic<bool>& stop);

// Does all of a group's operations on one stream, on that stream's thread, until they are done or
// their communicator is aborted.
void RunGroup(const std::vector<std::shared_ptr<Operation>>& group);

}  // namespace penstock::nccl_standin

// What ncclComm_t points to.
struct ncclComm {
  int rank = 0;
  int ranks = 0;
  int gpu = 0;
  std::string id;
  std::atomic<int> state = ncclInProgress;  // As ncclCommGetAsyncError tells it.
  std::atomic<bool> ready = false;          // It was made.
  std::atomic<bool> abort = false;
  std::atomic<int> callers = 0;
  std::atomic<int> groups_running = 0;
  std::vector<penstock::nccl_standin::Pair> pairs;  // By rank; none with itself.
  // Asked for, and not yet on their streams; so many questions from now they are.
  std::vector<std::shared_ptr<penstock::nccl_standin::Operation>> launching;
  int questions_left = 0;
  std::vector<std::shared_ptr<penstock::nccl_standin::Operation>> received;  // Perhaps under way.
  std::jthread init;
};
