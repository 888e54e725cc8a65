// SPDX-License-Identifier: Apache-2.0
// Times of kernels/attention_cuda.h and kernels/kv_rows_cuda.h on a GPU, at the shapes of Llama 3 8B
// and 70B: the median of 20 runs after 3, and its share of what an H100 can (3.35 TB/s of memory for
// decode, 66.9 TFLOP/s of F32 for prompts). Runs take turns among cache layers of at least 256 MiB
// together, so that no run finds its keys in the L2 cache.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/kv_spec.h"
#include "kernels/attention_cuda.h"
#include "kernels/kv_rows_cuda.h"

namespace penstock::kernels {
namespace {

constexpr double kBytesPerSecond = 3.35e12;
constexpr double kFlopsPerSecond = 66.9e12;
constexpr std::int32_t kBlockTokens = 32;
constexpr std::int32_t kDim = 128;
constexpr std::int32_t kKvHeads = 8;

void Check(cudaError_t error, int line) {
  if (error == cudaSuccess) return;
  std::printf("line %d: %s\n", line, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK_CUDA(call) Check(call, __LINE__)

template <typename T>
class Buffer {
 public:
  explicit Buffer(std::size_t n) : n_(n) {
    CHECK_CUDA(
        cudaMalloc(reinterpret_cast<void**>(&data_), std::max<std::size_t>(n, 1) * sizeof(T)));
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    CHECK_CUDA(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  T* data() { return data_; }

 private:
  std::size_t n_ = 0;
  T* data_ = nullptr;
};

// The median of 20, in microseconds.
template <typename Run>
double Microseconds(const Run& run) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 23; ++i) {
    CHECK_CUDA(cudaEventRecord(begin));
    CHECK_CUDA(run(i));
    CHECK_CUDA(cudaEventRecord(end));
    CHECK_CUDA(cudaEventSynchronize(end));
    float milliseconds = 0;
    CHECK_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 3) times.push_back(milliseconds * 1000);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + 10, times.end());
  return static_cast<double>(times[10]);
}

// `sequences` of `rows` rows from `position` on.
void Run(const char* model, std::int32_t qo_heads, std::int32_t sequences, std::int32_t rows,
         std::int32_t position, KvDtype dtype = KvDtype::kF16) {
  const std::int32_t context = position + rows;
  const std::int32_t blocks = (context + kBlockTokens - 1) / kBlockTokens;
  const PageLayout page = {
      kBlockTokens,
      kBlockTokens,
      {.cache_layers = 1, .kv_heads = kKvHeads, .k_dim = kDim, .v_dim = kDim, .dtype = dtype}};
  const std::size_t page_bytes = page.page_bytes();
  const std::size_t layer_bytes = page_bytes * kKvHeads;
  const std::size_t batch_bytes = layer_bytes * static_cast<std::size_t>(blocks * sequences);
  const std::int32_t layers =
      static_cast<std::int32_t>(std::max<std::size_t>(1, (std::size_t{256} << 20) / batch_bytes));
  const std::size_t slab_bytes = layer_bytes * static_cast<std::size_t>(layers);

  // Numbers between 0.5 and 1 of either sign; by bytes they are levels.
  std::vector<std::uint16_t> random(std::size_t{1} << 22);
  std::uint32_t state = 1;
  for (std::uint16_t& x : random) {
    state = state * 1664525 + 1013904223;
    x = static_cast<std::uint16_t>(((state >> 16) & 0x83ff) | 0x3800);
  }
  const std::size_t pool_bytes = slab_bytes * static_cast<std::size_t>(blocks * sequences);
  Buffer<std::byte> pool(pool_bytes);
  for (std::size_t at = 0; at < pool_bytes; at += random.size() * 2) {
    CHECK_CUDA(cudaMemcpy(pool.data() + at, random.data(),
                          std::min(random.size() * 2, pool_bytes - at), cudaMemcpyHostToDevice));
  }
  CudaKv kv;
  kv.dtype = dtype;
  kv.block_tokens = kv.page_tokens = kBlockTokens;
  kv.kv_heads = kKvHeads;
  kv.k_dim = kv.v_dim = kDim;
  kv.page_bytes = static_cast<std::int64_t>(page_bytes);
  kv.k_bytes = static_cast<std::int64_t>(page.k_bytes());
  kv.scales_at = static_cast<std::int64_t>(page.k_scales_offset());
  std::vector<std::uint32_t> slabs;
  std::vector<CudaSequence> table;
  std::vector<CudaRow> row_table;
  for (std::int32_t s = 0; s < sequences; ++s) {
    table.push_back({s * rows, rows, position, 0, s * blocks});
    // Neighbouring blocks of a sequence lie apart.
    for (std::int32_t b = 0; b < blocks; ++b) {
      slabs.push_back(static_cast<std::uint32_t>(b * sequences + s) << 8);
    }
    for (std::int32_t r = 0; r < rows; ++r) row_table.push_back({s * rows + r, s, position + r});
  }
  Buffer<std::uint32_t> device_slabs(slabs);
  Buffer<CudaSequence> device_sequences(table);
  Buffer<CudaRow> device_rows(row_table);
  Buffer<std::byte*> bases(std::vector<std::byte*>{pool.data()});
  Buffer<std::uint64_t> strides(std::vector<std::uint64_t>{slab_bytes});
  kv.slabs = device_slabs.data();
  kv.sequences = device_sequences.data();
  kv.rows = device_rows.data();
  kv.pool_base = bases.data();
  kv.pool_stride_bytes = strides.data();
  kv.sequence_count = sequences;
  kv.row_count = kv.rows_max = rows;
  kv.row_count *= sequences;
  kv.partitions_max = (context + 255) / 256;

  const auto floats =
      static_cast<std::size_t>(kv.row_count) * static_cast<std::size_t>(qo_heads) * kDim;
  std::vector<float> q_values(floats);
  for (std::size_t i = 0; i < floats; ++i) {
    q_values[i] = static_cast<float>(random[i % random.size()] & 0x3ff) / 512 - 1;
  }
  Buffer<float> q(q_values);
  Buffer<float> out(floats);
  Buffer<std::byte> scratch(AttentionScratchBytesCuda(kv, qo_heads));
  const double us = Microseconds([&](int i) {
    kv.cache_layer = i % layers;
    return AttentionCuda(q.data(), qo_heads, 0.0883883461f, kv, out.data(), scratch.data(),
                         nullptr);
  });
  double pairs = 0;  // Of a query row and a key that it sees.
  for (std::int32_t r = 0; r < rows; ++r) pairs += position + r + 1;
  pairs *= sequences;
  const auto token_bytes = static_cast<double>(page_bytes / kBlockTokens);  // Of a KV head.
  const double bytes = 1.0 * sequences * context * kKvHeads * token_bytes;
  const double flops = pairs * qo_heads * 2 * 2 * kDim;
  std::printf(
      "%-4s %-4s heads %2d/%d batch %3d rows %4d at %6d: %9.1f us  %6.0f GB/s %5.1f %%  %6.2f "
      "TFLOP/s "
      "%5.1f %%\n",
      model, ToString(dtype).data(), qo_heads, kKvHeads, sequences, rows, position, us,
      bytes / us / 1e3, 100 * bytes / (us * 1e-6) / kBytesPerSecond, flops / us / 1e6,
      100 * flops / (us * 1e-6) / kFlopsPerSecond);

  Buffer<float> k(static_cast<std::size_t>(kv.row_count * kKvHeads * kDim));
  Buffer<float> v(static_cast<std::size_t>(kv.row_count * kKvHeads * kDim));
  Buffer<float> turns(std::vector<float>(static_cast<std::size_t>(kv.row_count * kDim / 2), 0.7f));
  const CudaPrepare qkv = {.q = q.data(),
                           .k = k.data(),
                           .v = v.data(),
                           .qo_heads = qo_heads,
                           .rotary_dim = kDim,
                           .cos = turns.data(),
                           .sin = turns.data()};
  const double prepare_us = Microseconds([&](int i) {
    kv.cache_layer = i % layers;
    return PrepareAndStoreCuda(qkv, kv, nullptr);
  });
  const double prepare_bytes =
      static_cast<double>(kv.row_count) *
      (kDim * (8.0 * qo_heads + (8 + 4) * kKvHeads + 2 * 2) + token_bytes * kKvHeads);
  std::printf("     prepare and store: %.1f us  %.0f GB/s\n", prepare_us,
              prepare_bytes / prepare_us / 1e3);
}

}  // namespace
}  // namespace penstock::kernels

int main() {
  using penstock::KvDtype;
  using penstock::kernels::Run;
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
    std::printf("skipped: no GPU\n");
    return 77;
  }
  std::printf("%s, %d SMs\n", properties.name, properties.multiProcessorCount);
  Run("8B", 32, 16, 1, 8191);
  Run("8B", 32, 64, 1, 1023);
  Run("8B", 32, 256, 1, 511);
  Run("8B", 32, 1, 1, 8191);
  Run("8B", 32, 1, 1, 131071);
  Run("70B", 64, 16, 1, 8191);
  Run("70B", 64, 64, 1, 1023);
  Run("8B", 32, 1, 512, 0);
  Run("8B", 32, 1, 1024, 0);
  Run("8B", 32, 1, 2048, 0);
  Run("8B", 32, 1, 4096, 0);
  Run("8B", 32, 1, 64, 8192);
  Run("8B", 32, 1, 512, 8192);
  Run("8B", 32, 1, 2048, 8192);
  Run("70B", 64, 1, 512, 0);
  Run("70B", 64, 1, 2048, 0);
  Run("70B", 64, 1, 2048, 8192);
  Run("8B", 32, 16, 1, 8191, KvDtype::kInt8);
  Run("8B", 32, 64, 1, 1023, KvDtype::kInt8);
  Run("8B", 32, 1, 1, 131071, KvDtype::kInt8);
  Run("70B", 64, 16, 1, 8191, KvDtype::kInt8);
  Run("8B", 32, 1, 2048, 0, KvDtype::kInt8);
  Run("8B", 32, 1, 512, 8192, KvDtype::kInt8);
  Run("70B", 64, 1, 2048, 8192, KvDtype::kInt8);
  return 0;
}
