// SPDX-License-Identifier: Apache-2.0
// How fast kernels/linear_cuda.h is on this machine's first GPU, against what an H100 SXM can do at
// most: 3.35 TB/s of memory, 1979 TOP/s of int8 tensor cores, 66.9 TFLOP/s of fp32.
//
//   linear_cuda_bench [few|group|many|wide|float|gated] [format] all kernels, most formats
//
// Weights go round through more memory than the L2 cache holds. A time is the median of 20 samples
// of up to 20 launches, after a warm-up.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/linear_cuda.h"
#include "kernels/linear_cuda_kernels.h"
#include "kernels/weight_format.h"

namespace penstock::kernels {
namespace {

constexpr double kMemoryBytes = 3.35e12;
constexpr double kInt8Ops = 1979e12;
constexpr double kFloatOps = 66.9e12;
constexpr std::size_t kRoundBytes = 160u << 20;  // H100's L2 cache has 50 MiB.
constexpr int kSamples = 20;
constexpr int kBatchMost = 20;  // Launches per sample.

void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <typename T>
T* Device(std::size_t n, int byte) {
  void* p = nullptr;
  Check(cudaMalloc(&p, n * sizeof(T)));
  Check(cudaMemset(p, byte, n * sizeof(T)));
  return static_cast<T*>(p);
}

// Seconds of one launch of many in a row, as one graph: the host's part does not count. launch(i,
// stream) queues the ith.
template <typename Launch>
double Time(double ops, const Launch& launch) {
  // About a millisecond per sample.
  const int batch = std::clamp(static_cast<int>(1e-3 / (ops / 100e12)), 1, kBatchMost);
  cudaStream_t stream;
  Check(cudaStreamCreate(&stream));
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  cudaGraph_t graph;
  cudaGraphExec_t run;
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < batch; ++i) Check(launch(i, stream));
  Check(cudaStreamEndCapture(stream, &graph));
  Check(cudaGraphInstantiate(&run, graph, 0));
  std::vector<double> times;
  for (int sample = -2; sample < kSamples; ++sample) {
    Check(cudaEventRecord(begin, stream));
    Check(cudaGraphLaunch(run, stream));
    Check(cudaEventRecord(end, stream));
    Check(cudaEventSynchronize(end));
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, begin, end));
    if (sample >= 0) times.push_back(ms * 1e-3 / batch);
  }
  Check(cudaGraphExecDestroy(run));
  Check(cudaGraphDestroy(graph));
  Check(cudaEventDestroy(begin));
  Check(cudaEventDestroy(end));
  Check(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return times[kSamples / 2];
}

using Kernel = cudaError_t (*)(linear_cuda::Products, cudaStream_t);

class Bench {
 public:
  void Run(std::string_view name, Kernel kernel, WeightFormat format, std::int32_t w_rows,
           std::int32_t cols, std::int32_t rows) {
    const std::size_t bytes = PackedBytes(format, w_rows, cols);
    const auto copies = static_cast<int>(kRoundBytes / bytes + 1);
    Make(bytes * static_cast<std::size_t>(copies), rows, cols, w_rows);
    const PackedMatrix w = {format, w_rows, cols, weights_};
    linear_cuda::Products products = {};
    products.product[0] = {weights_, nullptr, y_, w_rows, 0, false};
    products.count = 1;
    products.format = format;
    products.cols = cols;
    products.rows = rows;
    products.f32 = x_.f32;
    products.q = x_.q;
    products.scale = x_.scale;
    products.sum = x_.sum;
    const double ops = 2.0 * w_rows * cols * rows * (w.takes_int8() ? 1 : 10);
    const double seconds = Time(ops, [&](int i, cudaStream_t stream) {
      products.product[0].data = weights_ + bytes * static_cast<std::size_t>(i % copies);
      return kernel(products, stream);
    });
    Print(name, w, rows, 1, bytes, seconds);
    Drop();
  }

  void RunGated(WeightFormat format, std::int32_t w_rows, std::int32_t cols, std::int32_t rows) {
    const std::size_t bytes = PackedBytes(format, w_rows, cols);
    const auto copies = static_cast<int>(kRoundBytes / bytes + 2);
    Make(bytes * static_cast<std::size_t>(copies), rows, cols, w_rows);
    const PackedMatrix w = {format, w_rows, cols, weights_};
    const std::size_t blocks = std::size_t{1} * rows * w_rows / 32;
    const Activations out = {w_rows, nullptr, Device<std::int8_t>(blocks * 32, 0),
                             Device<float>(blocks, 0), Device<std::int32_t>(blocks, 0)};
    const double ops = 4.0 * w_rows * cols * rows;
    const double seconds = Time(ops, [&](int i, cudaStream_t stream) {
      PackedMatrix gate = w, up = w;
      gate.data += bytes * static_cast<std::size_t>(2 * i % copies);
      up.data += bytes * static_cast<std::size_t>((2 * i + 1) % copies);
      return GatedLinearCuda(x_, rows, gate, up, Activation::kSilu, out, y_, stream);
    });
    Print("gated", w, rows, 2, bytes, seconds);
    Check(cudaFree(out.q));
    Check(cudaFree(out.scale));
    Check(cudaFree(out.sum));
    Drop();
  }

 private:
  void Make(std::size_t bytes, std::int32_t rows, std::int32_t cols, std::int32_t w_rows) {
    weights_ = Device<std::byte>(bytes, 0x11);
    const std::size_t n = std::size_t{1} * rows * cols;
    x_ = {cols, Device<float>(n, 0), Device<std::int8_t>(n, 3), Device<float>(n / 32, 0),
          Device<std::int32_t>(n / 32, 0)};
    y_ = Device<float>(std::size_t{2} * rows * w_rows, 0);
  }
  void Drop() {
    for (void* p :
         {static_cast<void*>(weights_), static_cast<void*>(x_.f32), static_cast<void*>(x_.q),
          static_cast<void*>(x_.scale), static_cast<void*>(x_.sum), static_cast<void*>(y_)}) {
      Check(cudaFree(p));
    }
  }
  static void Print(std::string_view name, const PackedMatrix& w, std::int32_t rows, int matrices,
                    std::size_t bytes, double seconds) {
    const double gb = static_cast<double>(bytes) * matrices;
    const double ops = 2.0 * matrices * w.rows * w.cols * rows;
    const double peak = w.takes_int8() ? kInt8Ops : kFloatOps;
    std::printf("%-5s %-5s %6dx%-5d M=%-5d %9.1f us %6.0f GB/s %5.1f %%  %7.1f TOP/s %5.1f %%\n",
                std::string(name).c_str(), std::string(Info(w.format).name).c_str(), w.rows, w.cols,
                rows, seconds * 1e6, gb / seconds / 1e9, 100 * gb / seconds / kMemoryBytes,
                ops / seconds / 1e12, 100 * ops / seconds / peak);
    std::fflush(stdout);
  }

  std::byte* weights_ = nullptr;
  Activations x_;
  float* y_ = nullptr;
};

struct Shape {
  std::int32_t w_rows, cols;
};
// Of Llama-3-8B: attention, gate and up, down, head.
constexpr Shape kShapes[] = {{4096, 4096}, {14336, 4096}, {4096, 14336}, {128256, 4096}};

void RunAll(std::string_view kind, std::string_view format_name) {
  const auto wants = [&](WeightFormat format, std::string_view of_kind) {
    return (kind.empty() || kind == of_kind) &&
           (format_name == Info(format).name ||
            (format_name.empty() && format != WeightFormat::kQ5_K &&
             format != WeightFormat::kQ2_K));
  };
  Bench bench;
  for (const WeightFormat format :
       {WeightFormat::kQ4_K, WeightFormat::kQ4_0, WeightFormat::kQ8_0, WeightFormat::kQ6_K,
        WeightFormat::kQ5_K, WeightFormat::kQ2_K}) {
    for (const Shape& s : kShapes) {
      for (const std::int32_t rows : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}) {
        if (s.w_rows > 100000 && rows > 8) continue;  // Only of each sequence's last row.
        if (rows <= linear_cuda::kFewRowsMax && wants(format, "few")) {
          bench.Run("few", linear_cuda::FewRows, format, s.w_rows, s.cols, rows);
        }
        if (rows <= 32 && wants(format, "group")) {
          bench.Run("group", linear_cuda::GroupRows, format, s.w_rows, s.cols, rows);
        }
        if (rows > 8 && wants(format, "many")) {
          bench.Run("many", linear_cuda::ManyRows, format, s.w_rows, s.cols, rows);
        }
        if (rows >= 128 && wants(format, "wide")) {
          bench.Run("wide", linear_cuda::ManyRowsWide, format, s.w_rows, s.cols, rows);
        }
      }
    }
    for (const std::int32_t rows : {1, 8, 1024}) {
      if (wants(format, "gated")) bench.RunGated(format, 14336, 4096, rows);
    }
  }
  for (const WeightFormat format : {WeightFormat::kF16, WeightFormat::kF32}) {
    for (const Shape& s : {Shape{4096, 4096}, Shape{4096, 14336}}) {
      for (const std::int32_t rows : {1, 8, 16, 32, 128, 1024}) {
        if (!wants(format, "float")) continue;
        if (rows <= 32) {
          bench.Run("few", linear_cuda::FloatFewRows, format, s.w_rows, s.cols, rows);
        }
        if (rows > 8) bench.Run("many", linear_cuda::FloatManyRows, format, s.w_rows, s.cols, rows);
      }
    }
  }
}

}  // namespace
}  // namespace penstock::kernels

int main(int argc, char** argv) {
  penstock::kernels::RunAll(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "");
  return 0;
}
