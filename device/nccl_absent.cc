// SPDX-License-Identifier: Apache-2.0
#include "device/nccl_table.h"

namespace penstock {

const NcclLibrary* LoadNccl() {
  static constexpr NcclLibrary library = {
      .api = nullptr,
      .version = 0,
      .header_version = 0,
      .why_not = "the plug-in was built where there was no nccl.h"};
  return &library;
}

}  // namespace penstock
