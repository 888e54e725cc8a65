// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>

#include "device/nccl_symbols.h"

namespace penstock {
namespace {

constexpr char kFile[] = "libnccl.so.2";

template <typename Function>
void Find(void* library, const char* name, Function& function, std::string& why_not) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr) why_not = std::string(kFile) + " has no " + name;
}

}  // namespace

NcclSymbols FindNcclSymbols() {
  NcclSymbols all;
  void* const library = ::dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const text = ::dlerror();
    all.why_not = std::string("cannot load ") + kFile + ": " + (text == nullptr ? "?" : text);
    return all;
  }
  std::string& why_not = all.why_not;
  Find(library, "ncclGetVersion", all.get_version, why_not);
  Find(library, "ncclGetUniqueId", all.get_unique_id, why_not);
  Find(library, "ncclCommInitRankConfig", all.comm_init_rank_config, why_not);
  Find(library, "ncclCommGetAsyncError", all.comm_get_async_error, why_not);
  Find(library, "ncclCommAbort", all.comm_abort, why_not);
  Find(library, "ncclCommRegister", all.comm_register, why_not);
  Find(library, "ncclCommDeregister", all.comm_deregister, why_not);
  Find(library, "ncclGroupStart", all.group_start, why_not);
  Find(library, "ncclGroupEnd", all.group_end, why_not);
  Find(library, "ncclSend", all.send, why_not);
  Find(library, "ncclRecv", all.recv, why_not);
  Find(library, "ncclAllGather", all.all_gather, why_not);
  Find(library, "ncclGetErrorString", all.get_error_string, why_not);
  return all;
}

}  // namespace penstock
