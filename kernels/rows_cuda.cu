// SPDX-License-Identifier: Apache-2.0
#include "kernels/gpu.h"
//
#include "kernels/elementwise_targets.h"
#include "kernels/exp_cuda.h"
#include "kernels/packed_cuda.h"
#include "kernels/rows_cuda.h"

namespace penstock::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kSums = 16;  // Partial sums of a row's squares.
constexpr int kNormChunk = 4096;
constexpr std::int32_t kNormBlocks = 64;  // So many norm a batch of few rows together at most.

constexpr float kFloatMin = 1.17549435e-38f;

// --- The int8 form of a block of 32, one value per lane ---

// Lane i has x[i] of block `block` of a row, 0 behind its end.
GPU_DEVICE void QuantizeBlock(float x, const Activations& out, std::int64_t row, int block,
                              int lane) {
  const float magnitude = gpu::FloatFromBits(gpu::BitsFromFloat(x) & 0x7fffffff);
  // As std::max(max_abs, |x|): a NaN is passed over.
  float max_abs = magnitude > 0 ? magnitude : 0;
  GPU_UNROLL()
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const float other = gpu::ShflXor(max_abs, lanes);
    max_abs = other > max_abs ? other : max_abs;
  }
  float scale = gpu::Divide(max_abs, 127.0f);
  if (scale < kFloatMin) scale = 0;
  const float inverse = scale > 0 ? gpu::Divide(1.0f, scale) : 0;
  int q = gpu::RoundToInt(x * inverse);
  q = q < -127 ? -127 : q > 127 ? 127 : q;
  int sum = q;
  GPU_UNROLL()
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += gpu::ShflXor(sum, lanes);
  const std::int64_t at = row * out.blocks() + block;
  out.q[at * kQuantBlock + lane] = static_cast<std::int8_t>(q);
  if (lane == 0) {
    out.scale[at] = scale;
    out.sum[at] = sum;
  }
}

// The value of column c of row r, in each form that `out` has. All lanes of a warp take the same
// block of the same row; those behind the row's end give 0.
GPU_DEVICE void WriteValue(float value, const Activations& out, std::int64_t row, int block,
                           int lane) {
  const int c = block * kQuantBlock + lane;
  if (out.f32 != nullptr && c < out.cols) out.f32[row * out.cols + c] = value;
  if (out.q != nullptr) QuantizeBlock(value, out, row, block, lane);
}

GPU_DEVICE float Silu(float x) { return gpu::Divide(x, 1 + ExpCuda(-x)); }

GPU_DEVICE float GeluTanh(float x) {
  return gpu::Divide(x, 1 + ExpCuda(kGeluFactor * gpu::Fma(kGeluCubic, (x * x) * x, x)));
}

// Which value of a batch of rows a thread has where each warp takes 32 columns of one row.
struct Place {
  std::int64_t row;
  int block;
  int lane;
  int column;
};
GPU_DEVICE Place PlaceOf(int blocks) {
  const std::int64_t warp = std::int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(warp % blocks);
  return {warp / blocks, block, lane, block * kQuantBlock + lane};
}

// One warp per block of 32 columns of a row.
GPU_KERNEL(kThreads, 4)
GateRowsKernel(const float* gate, const float* up, Activation activation, std::int32_t rows,
               const Activations out) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const Place at = PlaceOf(out.blocks());
  if (at.row >= rows) return;
  float value = 0;
  if (at.column < out.cols) {
    const std::int64_t i = at.row * out.cols + at.column;
    const float x = gate[i];
    value = (activation == Activation::kSilu ? Silu(x) : GeluTanh(x)) * up[i];
  }
  WriteValue(value, out, at.row, at.block, at.lane);
}

// One warp per block of 32 columns of a row of `out`.
GPU_KERNEL(kThreads, 4)
TakeColumnsKernel(const float* x, std::int32_t cols, std::int32_t first, std::int32_t rows,
                  const Activations out) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const Place at = PlaceOf(out.blocks());
  if (at.row >= rows) return;
  const float value = at.column < out.cols ? x[at.row * cols + first + at.column] : 0;
  WriteValue(value, out, at.row, at.block, at.lane);
}

// One thread per output.
GPU_KERNEL(kThreads, 4)
SumPartsKernel(const float* parts, std::int32_t count, std::int64_t n, bool add, float* y) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + static_cast<int>(threadIdx.x);
  if (i >= n) return;
  float sum = parts[i];
  for (std::int32_t part = 1; part < count; ++part) sum += parts[part * n + i];
  y[i] = add ? y[i] + sum : sum;
}

// --- RMS norm ---

// 1 / sqrt(mean of squares + eps) of a row of n floats, in elementwise.h's order, for every thread
// of the block: the threads bring pieces of the row into shared memory, and sixteen add.
GPU_DEVICE float NormFactor(const float* x, int n, float eps) {
  GPU_SHARED(float, piece, kNormChunk);
  GPU_SHARED(float, factor, 1);
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int begin = 0; begin < n; begin += kNormChunk) {
    const int count = n - begin < kNormChunk ? n - begin : kNormChunk;
    // All on their way at once.
    float values[kNormChunk / kThreads];
    GPU_UNROLL()
    for (int i = 0; i < kNormChunk / kThreads; ++i) {
      const int at = thread + i * kThreads;
      values[i] = at < count ? x[begin + at] : 0;
    }
    GPU_UNROLL()
    for (int i = 0; i < kNormChunk / kThreads; ++i) piece[thread + i * kThreads] = values[i];
    gpu::SyncThreads();
    if (thread < kSums) {
      GPU_UNROLL(16)
      for (int i = thread; i < count; i += kSums) sum = gpu::Fma(piece[i], piece[i], sum);
    }
    gpu::SyncThreads();
  }
  if (thread < 32) {
    // Sum i of so many takes that of i + distance; what the others take is of no use.
    GPU_UNROLL()
    for (int distance = kSums / 2; distance > 0; distance /= 2) {
      sum += gpu::Shfl(sum, (thread + distance) % 32);
    }
    if (thread == 0) {
      const float mean = gpu::Divide(sum, static_cast<float>(n));
      factor[0] = gpu::Divide(1.0f, gpu::Sqrt(mean + eps));
    }
  }
  gpu::SyncThreads();
  return factor[0];
}

// A row may have several blocks of threads (y), each of which has the whole row's factor and writes
// a part: the row's blocks of 32 columns [begin, end).
struct NormPart {
  int begin;
  int end;
};
GPU_DEVICE NormPart PartOf(int blocks) {
  const int parts = static_cast<int>(gridDim.y);
  const int part = static_cast<int>(blockIdx.y);
  return {blocks * part / parts, blocks * (part + 1) / parts};
}

// x may be out.f32 where rows have one part.
GPU_KERNEL(kThreads, 4)
RmsNormKernel(const float* x, const float* w, float eps, const Activations out) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t row = blockIdx.x;
  const float* from = x + row * out.cols;
  const float factor = NormFactor(from, out.cols, eps);
  const NormPart part = PartOf(out.blocks());
  for (int block = part.begin + static_cast<int>(threadIdx.x) / 32; block < part.end;
       block += kWarps) {
    const int c = block * kQuantBlock + lane;
    WriteValue(c < out.cols ? from[c] * factor * w[c] : 0, out, row, block, lane);
  }
}

GPU_KERNEL(kThreads, 4)
RmsNormAddKernel(const float* y, const float* w, float eps, std::int32_t cols, float* x) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const std::int64_t begin = std::int64_t{blockIdx.x} * cols;
  const float factor = NormFactor(y + begin, cols, eps);
  const NormPart part = PartOf((cols + kQuantBlock - 1) / kQuantBlock);
  const int end = part.end * kQuantBlock < cols ? part.end * kQuantBlock : cols;
  for (int c = part.begin * kQuantBlock + static_cast<int>(threadIdx.x); c < end; c += kThreads) {
    x[begin + c] += y[begin + c] * factor * w[c];
  }
}

// --- Rows of tables ---

// One thread per output; block (x, y): columns from 256 x on of row y.
GPU_KERNEL(kThreads, 4)
EmbedKernel(const PackedMatrix table, const std::int32_t* tokens, float scale, float* x) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const int column = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (column >= table.cols) return;
  float value = WeightAt(table.format, table, tokens[blockIdx.y], column);
  if (scale != 1) value *= scale;
  x[std::int64_t{blockIdx.y} * table.cols + column] = value;
}

// One thread per output; block (x, y): columns from 256 x on of row y.
GPU_KERNEL(kThreads, 4)
GatherRowsKernel(const float* x, std::int32_t cols, const std::int32_t* index, float* out) {
  gpu::LetNextStart();
  gpu::WaitForEarlier();
  const int column = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (column >= cols) return;
  out[std::int64_t{blockIdx.y} * cols + column] =
      x[std::int64_t{index[blockIdx.y]} * cols + column];
}

unsigned BlocksFor(std::int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

// The launch grid's y has 16 bits.
constexpr std::int32_t kGridRowsMax = 65535;

// Several blocks of threads norm one row where rows are too few to spread over a GPU; in place one
// does, since the others would read what it has written.
dim3 NormGrid(std::int32_t rows, std::int32_t cols, bool in_place) {
  const std::int32_t parts_max = (cols + kWarps * kQuantBlock - 1) / (kWarps * kQuantBlock);
  const std::int32_t wanted = in_place || rows > kNormBlocks ? 1 : kNormBlocks / rows;
  return {static_cast<unsigned>(rows),
          static_cast<unsigned>(wanted < parts_max ? wanted : parts_max)};
}

}  // namespace

cudaError_t EmbedCuda(const PackedMatrix& table, const std::int32_t* tokens, std::int32_t rows,
                      float scale, float* x, cudaStream_t stream) {
  for (std::int32_t begin = 0; begin < rows; begin += kGridRowsMax) {
    const std::int32_t count = rows - begin < kGridRowsMax ? rows - begin : kGridRowsMax;
    GPU_LAUNCH_EARLY(EmbedKernel, dim3(BlocksFor(table.cols), static_cast<unsigned>(count)),
                     dim3(kThreads), 0, stream, table, tokens + begin, scale,
                     x + std::int64_t{begin} * table.cols);
  }
  return cudaGetLastError();
}

cudaError_t GatherRowsCuda(const float* x, std::int32_t cols, const std::int32_t* index,
                           std::int32_t rows, float* out, cudaStream_t stream) {
  for (std::int32_t begin = 0; begin < rows; begin += kGridRowsMax) {
    const std::int32_t count = rows - begin < kGridRowsMax ? rows - begin : kGridRowsMax;
    GPU_LAUNCH_EARLY(GatherRowsKernel, dim3(BlocksFor(cols), static_cast<unsigned>(count)),
                     dim3(kThreads), 0, stream, x, cols, index + begin,
                     out + std::int64_t{begin} * cols);
  }
  return cudaGetLastError();
}

cudaError_t RmsNormCuda(const float* x, const float* w, float eps, std::int32_t rows,
                        const Activations& out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  GPU_LAUNCH_EARLY(RmsNormKernel, NormGrid(rows, out.cols, x == out.f32), dim3(kThreads), 0, stream,
                   x, w, eps, out);
  return cudaGetLastError();
}

cudaError_t RmsNormAddCuda(const float* y, const float* w, float eps, std::int32_t rows,
                           std::int32_t cols, float* x, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  GPU_LAUNCH_EARLY(RmsNormAddKernel, NormGrid(rows, cols, false), dim3(kThreads), 0, stream, y, w,
                   eps, cols, x);
  return cudaGetLastError();
}

cudaError_t QuantizeRowsCuda(const float* x, std::int32_t rows, const Activations& out,
                             cudaStream_t stream) {
  Activations int8 = out;
  int8.f32 = nullptr;
  return TakeColumnsCuda(x, out.cols, 0, rows, int8, stream);
}

cudaError_t GateRowsCuda(const float* gate, const float* up, Activation activation,
                         std::int32_t rows, const Activations& out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  GPU_LAUNCH_EARLY(GateRowsKernel, dim3(BlocksFor(std::int64_t{rows} * out.blocks() * 32)),
                   dim3(kThreads), 0, stream, gate, up, activation, rows, out);
  return cudaGetLastError();
}

cudaError_t TakeColumnsCuda(const float* x, std::int32_t cols, std::int32_t first,
                            std::int32_t rows, const Activations& out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  GPU_LAUNCH_EARLY(TakeColumnsKernel, dim3(BlocksFor(std::int64_t{rows} * out.blocks() * 32)),
                   dim3(kThreads), 0, stream, x, cols, first, rows, out);
  return cudaGetLastError();
}

cudaError_t SumPartsCuda(const float* parts, std::int32_t count, std::int64_t n, bool add, float* y,
                         cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GPU_LAUNCH_EARLY(SumPartsKernel, dim3(BlocksFor(n)), dim3(kThreads), 0, stream, parts, count, n,
                   add, y);
  return cudaGetLastError();
}

}  // namespace penstock::kernels
