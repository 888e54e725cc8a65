// SPDX-License-Identifier: Apache-2.0
// cuDNN's own functions, wherever they were found. Inside device/ only.
#pragma once

#include <cudnn_graph.h>

#include <string>

namespace penstock {

struct CudnnSymbols {
  decltype(&cudnnGetVersion) get_version = nullptr;
  decltype(&cudnnGetErrorString) get_error_string = nullptr;
  decltype(&cudnnGetLastErrorString) get_last_error_string = nullptr;
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnDestroy) destroy = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;
  std::string why_not;  // Not empty: they are not all there.
};

// cudnn_opened.cc opens the system's library; cudnn_linked.cc has what the program is linked with.
CudnnSymbols FindCudnnSymbols();

// Why a library of that version cannot be used; empty: it can.
std::string WhyNotCudnnVersion(std::size_t version);

}  // namespace penstock
