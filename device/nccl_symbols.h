// SPDX-License-Identifier: Apache-2.0
// NCCL's own functions, wherever they were found. Inside device/ only.
#pragma once

#include <nccl.h>

#include <string>

namespace penstock {

struct NcclSymbols {
  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclCommRegister) comm_register = nullptr;
  decltype(&ncclCommDeregister) comm_deregister = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) recv = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  std::string why_not;  // Not empty: they are not all there.
};

// nccl_opened.cc opens the system's library; nccl_linked.cc has what the program is linked with.
NcclSymbols FindNcclSymbols();

// Why a library of that version cannot be used with this header; empty: it can.
std::string WhyNotNcclVersion(int version);

}  // namespace penstock
