// SPDX-License-Identifier: Apache-2.0
#include "device/cublas_lt_symbols.h"
#include "device/opened_library.h"

namespace penstock {
namespace {

// The first that has all; the header's own major version before the other.
constexpr const char* kOwnFirst[2][2] = {{"libcublasLt.so.12", "libcublasLt.so.13"},
                                         {"libcublasLt.so.13", "libcublasLt.so.12"}};
constexpr auto& kFiles = kOwnFirst[CUBLAS_VER_MAJOR >= 13 ? 1 : 0];

CublasLtSymbols SymbolsOf(void* library, const char* file) {
  CublasLtSymbols all;
  const SymbolFinder find(library, file, all.why_not);
  find("cublasLtGetVersion", all.get_version);
  find("cublasLtGetStatusName", all.get_status_name);
  find("cublasLtCreate", all.create);
  find("cublasLtDestroy", all.destroy);
  find("cublasLtMatmulDescCreate", all.desc_create);
  find("cublasLtMatmulDescDestroy", all.desc_destroy);
  find("cublasLtMatmulDescSetAttribute", all.desc_set);
  find("cublasLtMatrixLayoutCreate", all.layout_create);
  find("cublasLtMatrixLayoutDestroy", all.layout_destroy);
  find("cublasLtMatmulPreferenceCreate", all.preference_create);
  find("cublasLtMatmulPreferenceDestroy", all.preference_destroy);
  find("cublasLtMatmulPreferenceSetAttribute", all.preference_set);
  find("cublasLtMatmulAlgoGetHeuristic", all.get_heuristic);
  find("cublasLtMatmul", all.matmul);
  return all;
}

}  // namespace

CublasLtSymbols FindCublasLtSymbols() {
  std::string why_not;
  for (const char* const file : kFiles) {
    std::string own;
    if (void* const library = OpenLibrary(file, own); library != nullptr) {
      CublasLtSymbols all = SymbolsOf(library, file);
      if (all.why_not.empty()) return all;
      own = all.why_not;
      ::dlclose(library);
    }
    why_not += (why_not.empty() ? "" : "; ") + own;
  }
  CublasLtSymbols none;
  none.why_not = why_not;
  return none;
}

}  // namespace penstock
