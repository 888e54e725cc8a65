// SPDX-License-Identifier: Apache-2.0
#include "device/cudnn_symbols.h"

namespace penstock {

CudnnSymbols FindCudnnSymbols() {
  return {.get_version = cudnnGetVersion,
          .get_error_string = cudnnGetErrorString,
          .get_last_error_string = cudnnGetLastErrorString,
          .create = cudnnCreate,
          .destroy = cudnnDestroy,
          .set_stream = cudnnSetStream,
          .create_descriptor = cudnnBackendCreateDescriptor,
          .destroy_descriptor = cudnnBackendDestroyDescriptor,
          .set_attribute = cudnnBackendSetAttribute,
          .get_attribute = cudnnBackendGetAttribute,
          .finalize = cudnnBackendFinalize,
          .execute = cudnnBackendExecute,
          .why_not = {}};
}

}  // namespace penstock
