// SPDX-License-Identifier: Apache-2.0
// Pieces of a GPU's work that gpu_bench times, each from a few numbers: one of kernels/ops.h's
// operations, a copy, KV's way into a buffer and out of it, or what codecs make of a block (bench/gpu_work.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/kv_dtype.h"
#include "kernels/weight_format.h"
#include "kvstore/codecs/codec_id.h"

namespace penstock::bench {

// Members that a kernel does not use are not read for it.
//   linear, gated, embed,    format, outputs (weight rows of each matrix: gated has two of one
//   unpack                   size, embed and unpack one), cols, rows; linear: add (false where it is
//                            absent); unpack, of kernels/unpack_cuda.h, has all rows of its matrix
//   rms_norm, gather         cols, rows
//   draw                     cols (the vocabulary), rows (a token is drawn from each), filters (false
//                            where it is absent): with top-k 40 and top-p 0.9
//   prepare, attention       qo_heads, kv_heads, head_dim, sequences, rows (of each), position;
//                            kv_dtype (f16 where it is absent)
//   copy                     from, to (device, pinned, pageable), bytes
//   copy_both                bytes: from pinned memory and to it at once
//   copy_units               units, bytes (of each), run_bytes (divides those), check_only (false
//                            where it is absent): kernels/units_cuda.h, with checksums
//   encode_kv, decode_kv     codec (one that devices make: kernels::KvEncoding), layers, kv_heads,
//                            head_dim; kv_dtype (f16 where it is absent, not int8): a block of 32
//                            tokens
struct GpuCase {
  std::string name;
  std::string kernel;
  kernels::WeightFormat format = kernels::WeightFormat::kQ4_K;
  std::vector<std::int32_t> outputs;
  std::int32_t cols = 0;
  std::int32_t rows = 0;
  bool add = false;
  bool filters = false;
  std::int32_t qo_heads = 0;
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t sequences = 0;
  std::int32_t position = 0;  // Of each sequence's first row.
  KvDtype kv_dtype = KvDtype::kF16;
  std::string from;
  std::string to;
  std::size_t bytes = 0;
  std::int32_t units = 0;
  std::size_t run_bytes = 0;
  bool check_only = false;
  kvstore::CodecId codec = kvstore::CodecId::kRaw;
  std::int32_t layers = 0;
};

// INVALID_ARGUMENT naming the case and its fault: not JSON, an unknown kernel, format, kv_dtype or
// kind of memory or codec, a number that is missing or not between 1 and 2^20 (position: from 0; bytes: to 2^34),
// other matrices than the kernel has, an `add` that is not true or false, cols or qo_heads that the
// format's blocks or kv_heads do not divide, bytes that run_bytes do not.
absl::StatusOr<std::vector<GpuCase>> ReadGpuCases(std::istream& in);

}  // namespace penstock::bench
