// SPDX-License-Identifier: Apache-2.0
#include "device/cudnn_symbols.h"
#include "device/opened_library.h"

namespace penstock {
namespace {

// Loads its parts as it needs them; they lie beside it.
constexpr char kFile[] = "libcudnn_graph.so.9";

}  // namespace

CudnnSymbols FindCudnnSymbols() {
  CudnnSymbols all;
  void* const library = OpenLibrary(kFile, all.why_not);
  if (library == nullptr) return all;
  const SymbolFinder find(library, kFile, all.why_not);
  find("cudnnGetVersion", all.get_version);
  find("cudnnGetErrorString", all.get_error_string);
  find("cudnnGetLastErrorString", all.get_last_error_string);
  find("cudnnCreate", all.create);
  find("cudnnDestroy", all.destroy);
  find("cudnnSetStream", all.set_stream);
  find("cudnnBackendCreateDescriptor", all.create_descriptor);
  find("cudnnBackendDestroyDescriptor", all.destroy_descriptor);
  find("cudnnBackendSetAttribute", all.set_attribute);
  find("cudnnBackendGetAttribute", all.get_attribute);
  find("cudnnBackendFinalize", all.finalize);
  find("cudnnBackendExecute", all.execute);
  return all;
}

}  // namespace penstock
