// SPDX-License-Identifier: Apache-2.0
// cuBLASLt's own functions, wherever they were found. Inside device/ only.
#pragma once

#include <cublasLt.h>

#include <string>

namespace penstock {

struct CublasLtSymbols {
  decltype(&cublasLtGetVersion) get_version = nullptr;
  decltype(&cublasLtGetStatusName) get_status_name = nullptr;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtMatmulDescCreate) desc_create = nullptr;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  std::string why_not;  // Not empty: they are not all there.
};

// cublas_lt_opened.cc opens the system's library; cublas_lt_linked.cc has the stand-in's.
CublasLtSymbols FindCublasLtSymbols();

// Why a library of that version cannot be used with this header; empty: it can.
std::string WhyNotCublasLtVersion(std::size_t version);

}  // namespace penstock
