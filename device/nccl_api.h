// SPDX-License-Identifier: Apache-2.0
// NCCL as the program sees it, through the CUDA plug-in (device/cuda_api.h): plain functions, so
// that the program needs no header of NCCL. The plug-in opens libnccl.so.2 when it is first asked
// for, so that hosts without it still start.
//
// Every function but the last gives an ncclResult_t: 0 for success, kNcclInProgress where a
// non-blocking communicator is not done with what it was asked. Of one communicator only one thread
// at a time calls, but for comm_abort, which any thread may call while others are inside no call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/cuda_api.h"

struct ncclComm;  // NCCL's own name for what ncclComm_t points to.

namespace penstock {

using NcclCommHandle = ncclComm*;

// Says which communicator is meant; the same for all of its ranks.
struct NcclId {
  char bytes[128] = {};
};

// NCCL's functions by their names.
struct NcclApi {
  int (*get_unique_id)(NcclId* id);
  // ncclCommInitRankConfig with blocking = 0: kNcclInProgress until comm_get_async_error says
  // otherwise. On the thread's GPU. CTAs are what its kernels take of the GPU at a time.
  int (*comm_init)(NcclCommHandle* comm, int ranks, const NcclId& id, int rank, int ctas_min,
                   int ctas_max);
  int (*comm_get_async_error)(NcclCommHandle comm, int* error);
  // Ends what is under way and frees the communicator; `comm` is gone when it returns, if it does.
  int (*comm_abort)(NcclCommHandle comm);
  int (*comm_register)(NcclCommHandle comm, void* data, std::size_t bytes, void** registration);
  int (*comm_deregister)(NcclCommHandle comm, void* registration);
  int (*group_start)();
  // kNcclInProgress: what was asked is on its streams only once comm_get_async_error says success.
  int (*group_end)();
  // Bytes (ncclUint8), between device memory and the same call of the other rank.
  int (*send)(const void* data, std::size_t bytes, int peer, NcclCommHandle comm,
              CudaStreamHandle stream);
  int (*recv)(void* data, std::size_t bytes, int peer, NcclCommHandle comm,
              CudaStreamHandle stream);
  // Every rank's `bytes` at `data` come to be in all ranks' `all`, [ranks, bytes], by rank; `data`
  // may be the own part of it. In the same order in all ranks. As group_end: kNcclInProgress.
  int (*all_gather)(const void* data, void* all, std::size_t bytes, NcclCommHandle comm,
                    CudaStreamHandle stream);
  const char* (*get_error_string)(int error);
};

inline constexpr int kNcclSuccess = 0;
inline constexpr int kNcclInProgress = 7;

struct NcclLibrary {
  const NcclApi* api = nullptr;  // Null: `why_not` says why.
  int version = 0;               // Of the library that runs: 22809 is 2.28.9.
  int header_version = 0;        // Of the header that the plug-in was built with; 0: with none.
  const char* why_not = "";      // For people.
};

}  // namespace penstock
