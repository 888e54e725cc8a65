// SPDX-License-Identifier: Apache-2.0
#include "device/nccl_symbols.h"

namespace penstock {

NcclSymbols FindNcclSymbols() {
  return {.get_version = ncclGetVersion,
          .get_unique_id = ncclGetUniqueId,
          .comm_init_rank_config = ncclCommInitRankConfig,
          .comm_get_async_error = ncclCommGetAsyncError,
          .comm_abort = ncclCommAbort,
          .comm_register = ncclCommRegister,
          .comm_deregister = ncclCommDeregister,
          .group_start = ncclGroupStart,
          .group_end = ncclGroupEnd,
          .send = ncclSend,
          .recv = ncclRecv,
          .all_gather = ncclAllGather,
          .get_error_string = ncclGetErrorString,
          .why_not = {}};
}

}  // namespace penstock
