// SPDX-License-Identifier: Apache-2.0
#include "device/cublas_lt_standin.h"
#include "device/cublas_lt_symbols.h"

namespace penstock {

CublasLtSymbols FindCublasLtSymbols() {
  if (cublas_lt_standin::IsAbsent()) {
    CublasLtSymbols none;
    none.why_not = "cannot load libcublasLt.so.13: the stand-in is told to be absent";
    return none;
  }
  return {.get_version = cublasLtGetVersion,
          .get_status_name = cublasLtGetStatusName,
          .create = cublasLtCreate,
          .destroy = cublasLtDestroy,
          .desc_create = cublasLtMatmulDescCreate,
          .desc_destroy = cublasLtMatmulDescDestroy,
          .desc_set = cublasLtMatmulDescSetAttribute,
          .layout_create = cublasLtMatrixLayoutCreate,
          .layout_destroy = cublasLtMatrixLayoutDestroy,
          .preference_create = cublasLtMatmulPreferenceCreate,
          .preference_destroy = cublasLtMatmulPreferenceDestroy,
          .preference_set = cublasLtMatmulPreferenceSetAttribute,
          .get_heuristic = cublasLtMatmulAlgoGetHeuristic,
          .matmul = cublasLtMatmul,
          .why_not = {}};
}

}  // namespace penstock
