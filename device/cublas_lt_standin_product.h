// SPDX-License-Identifier: Apache-2.0
// The products of the stand-in for cuBLASLt: what they are given, what of it is wrong, and the sums.
// For cublas_lt_standin*.cc only.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace penstock::cublas_lt_standin {

struct Desc {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  cublasOperation_t trans_a = CUBLAS_OP_N;
  cublasOperation_t trans_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const float* bias = nullptr;  // [rows of D], of the device
};

// Element (r, c) is at r + c * ld.
struct Layout {
  cudaDataType_t type = CUDA_R_32F;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t ld = 0;
  bool operator==(const Layout&) const = default;
};

inline constexpr std::size_t kBiasAlignment = 16;
inline constexpr int kAlgos = 3;
struct Algo {
  std::int32_t id = 0;                        // A sum is of 2^id interleaved ones.
  std::int32_t split = 1;                     // Pieces of k, each summed by itself.
  std::uint32_t alignment[4] = {1, 1, 1, 1};  // Of A, B, C and D, in bytes.
};

// D = alpha A^T B + beta D + bias.
struct Product {
  Desc desc;
  const std::byte* a = nullptr;
  const std::byte* b = nullptr;
  float* d = nullptr;
  Layout a_layout, b_layout, d_layout;
  float alpha = 1;
  float beta = 0;
  Algo algo = {};
};

// By D's columns, which are the rows of a batch.
Algo BestAlgo(const Layout& d, std::size_t workspace_bytes);
std::size_t WorkspaceBytes(const Algo& algo, const Layout& d);

// With both numbers; empty: nothing is wrong.
std::string WhyNotShapes(const Layout& a, const Layout& b, const Layout& d);
std::string WhyNotBuffers(const Product& product, const void* workspace,
                          std::size_t workspace_bytes);

// Inside a cuda_standin::Work.
void Compute(const Product& product);

}  // namespace penstock::cublas_lt_standin
