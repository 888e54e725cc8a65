// SPDX-License-Identifier: Apache-2.0
#include "device/nccl_symbols.h"
#include "device/opened_library.h"

namespace penstock {
namespace {

constexpr char kFile[] = "libnccl.so.2";

}  // namespace

NcclSymbols FindNcclSymbols() {
  NcclSymbols all;
  void* const library = OpenLibrary(kFile, all.why_not);
  if (library == nullptr) return all;
  const SymbolFinder find(library, kFile, all.why_not);
  find("ncclGetVersion", all.get_version);
  find("ncclGetUniqueId", all.get_unique_id);
  find("ncclCommInitRankConfig", all.comm_init_rank_config);
  find("ncclCommGetAsyncError", all.comm_get_async_error);
  find("ncclCommAbort", all.comm_abort);
  find("ncclCommRegister", all.comm_register);
  find("ncclCommDeregister", all.comm_deregister);
  find("ncclGroupStart", all.group_start);
  find("ncclGroupEnd", all.group_end);
  find("ncclSend", all.send);
  find("ncclRecv", all.recv);
  find("ncclAllGather", all.all_gather);
  find("ncclGetErrorString", all.get_error_string);
  return all;
}

}  // namespace penstock
