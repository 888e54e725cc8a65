// SPDX-License-Identifier: Apache-2.0
#include "device/nccl_table.h"

#include <cstring>
#include <string>

#include "device/nccl_symbols.h"

namespace penstock {
namespace {

static_assert(kNcclSuccess == ncclSuccess && kNcclInProgress == ncclInProgress &&
              sizeof(NcclId) == sizeof(ncclUniqueId));

const NcclSymbols& Symbols() {
  static const NcclSymbols symbols = FindNcclSymbols();
  return symbols;
}

int CommInit(NcclCommHandle* comm, int ranks, const NcclId& id, int rank, int ctas_min,
             int ctas_max) {
  ncclUniqueId theirs;
  std::memcpy(&theirs, id.bytes, sizeof(theirs));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.minCTAs = ctas_min;
  config.maxCTAs = ctas_max;
  return Symbols().comm_init_rank_config(comm, ranks, theirs, rank, &config);
}

const NcclApi kNcclApi = {
    .get_unique_id =
        [](NcclId* id) {
          ncclUniqueId made;
          const int error = Symbols().get_unique_id(&made);
          std::memcpy(id->bytes, &made, sizeof(made));
          return error;
        },
    .comm_init = CommInit,
    .comm_get_async_error =
        [](NcclCommHandle comm, int* error) {
          ncclResult_t found = ncclSuccess;
          const int result = Symbols().comm_get_async_error(comm, &found);
          *error = found;
          return result;
        },
    .comm_abort = [](NcclCommHandle comm) -> int { return Symbols().comm_abort(comm); },
    .comm_register = [](NcclCommHandle comm, void* data, std::size_t bytes, void** registration)
        -> int { return Symbols().comm_register(comm, data, bytes, registration); },
    .comm_deregister = [](NcclCommHandle comm, void* registration) -> int {
      return Symbols().comm_deregister(comm, registration);
    },
    .group_start = []() -> int { return Symbols().group_start(); },
    .group_end = []() -> int { return Symbols().group_end(); },
    .send = [](const void* data, std::size_t bytes, int peer, NcclCommHandle comm,
               CudaStreamHandle stream) -> int {
      return Symbols().send(data, bytes, ncclUint8, peer, comm, stream);
    },
    .recv = [](void* data, std::size_t bytes, int peer, NcclCommHandle comm,
               CudaStreamHandle stream) -> int {
      return Symbols().recv(data, bytes, ncclUint8, peer, comm, stream);
    },
    .all_gather = [](const void* data, void* all, std::size_t bytes, NcclCommHandle comm,
                     CudaStreamHandle stream) -> int {
      return Symbols().all_gather(data, all, bytes, ncclUint8, comm, stream);
    },
    .get_error_string = [](int error) -> const char* {
      return Symbols().get_error_string(static_cast<ncclResult_t>(error));
    },
};

std::string Text(int version) {  // As NCCL_VERSION from 2.9 on.
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

// Why those functions cannot be used; empty: they can.
std::string WhyNot(int* version) {
  const NcclSymbols& symbols = Symbols();
  if (!symbols.why_not.empty()) return symbols.why_not;
  if (symbols.get_version(version) != ncclSuccess) return "NCCL does not tell its version";
  return WhyNotNcclVersion(*version);
}

}  // namespace

std::string WhyNotNcclVersion(int version) {
  if (version >= NCCL_VERSION_CODE && version / 10000 == NCCL_MAJOR) return {};
  return "NCCL is " + Text(version) + ", the plug-in needs " + Text(NCCL_VERSION_CODE) +
         " or a later " + std::to_string(NCCL_MAJOR);
}

const NcclLibrary* LoadNccl() {
  static int version = 0;
  static const std::string why_not = WhyNot(&version);
  static const NcclLibrary library = {.api = why_not.empty() ? &kNcclApi : nullptr,
                                      .version = version,
                                      .header_version = NCCL_VERSION_CODE,
                                      .why_not = why_not.c_str()};
  return &library;
}

}  // namespace penstock
