// SPDX-License-Identifier: Apache-2.0
// cuBLASLt as the program sees it, through the CUDA plug-in (device/cuda_api.h): plain functions, so
// that the program needs no header of it. The plug-in opens libcublasLt.so.13 or .12, its header's
// first, when it is asked for: half a gigabyte that hosts without a GPU, and workers of exact numerics, never load.
//
// Functions give a cublasStatus_t, 0 for success. A handle belongs to the thread's GPU of when it was
// made, and is used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/cuda_api.h"

struct cublasLtContext;  // cuBLASLt's own name for what cublasLtHandle_t points to.

namespace penstock {

using CublasLtHandle = cublasLtContext*;

enum class CublasLtType : std::uint8_t { kF16, kBF16, kF32 };

// y = x * w^T, plus y with `add`, plus `bias` in every row where it is wanted. Sums are of floats.
struct CublasLtProduct {
  CublasLtType type = CublasLtType::kF32;  // Of x and w; y and bias are floats.
  std::int64_t rows = 0;                   // x: [rows, cols], rows x_stride elements apart
  std::int64_t outputs = 0;                // w: [outputs, cols], rows w_stride elements apart
  std::int64_t cols = 0;
  std::int64_t x_stride = 0;
  std::int64_t w_stride = 0;
  std::int64_t y_stride = 0;       // y: [rows, outputs], rows so many floats apart
  std::uint32_t x_alignment = 16;  // Bytes that x, w and y are aligned to at least.
  std::uint32_t w_alignment = 16;
  std::uint32_t y_alignment = 16;
  bool add = false;
  bool bias = false;

  bool operator==(const CublasLtProduct&) const = default;
};

struct CublasLtPlan;  // The plug-in's.

struct CublasLtApi {
  int (*create)(CublasLtHandle* handle);
  int (*destroy)(CublasLtHandle handle);
  // What cuBLASLt holds best for such products, with at most workspace_bytes to work in. Puts nothing
  // into any stream. kCublasNotSupported: it knows no way.
  int (*plan_create)(CublasLtHandle handle, const CublasLtProduct& product,
                     std::size_t workspace_bytes, CublasLtPlan** plan);
  void (*plan_destroy)(CublasLtPlan* plan);
  // Of device memory. `bias`: [outputs], aligned to 16, read where the plan has one. `workspace`:
  // aligned to 256; as large as the plan was told; not for two products at a time. May be captured
  // into a graph. kCublasAllocFailed, kCublasInvalidValue, kCublasNotSupported: nothing was put into
  // the stream.
  int (*multiply)(CublasLtHandle handle, CublasLtPlan* plan, const void* x, const void* w,
                  const float* bias, float* y, void* workspace, std::size_t workspace_bytes,
                  CudaStreamHandle stream);
  const char* (*get_status_name)(int status);  // "CUBLAS_STATUS_EXECUTION_FAILED"
};

inline constexpr int kCublasSuccess = 0;
inline constexpr int kCublasAllocFailed = 3;
inline constexpr int kCublasInvalidValue = 7;
inline constexpr int kCublasNotSupported = 15;

struct CublasLtLibrary {
  const CublasLtApi* api = nullptr;  // Null: `why_not` says why.
  int version = 0;                   // Of the library that runs: 130100 is 13.1.0.
  int header_version = 0;            // Of the header that the plug-in was built with; 0: with none.
  const char* why_not = "";          // For people.
};

}  // namespace penstock
