// SPDX-License-Identifier: Apache-2.0
#include "device/cublas_lt_standin_product.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/float16.h"
#include "device/cuda_standin.h"

namespace penstock::cublas_lt_standin {
namespace {

// Rows of a batch above which there are tiles enough without a split, and without a half of one.
constexpr std::int64_t kRowsOfTwo = 24;
constexpr std::int64_t kRowsOfOne = 64;
constexpr std::int64_t kRowsOfPlainSums = 200;

constexpr std::size_t kWorkspaceAlignment = 256;

std::size_t ElementBytes(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

std::size_t Bytes(const Layout& layout) {
  if (layout.rows == 0 || layout.cols == 0) return 0;
  return static_cast<std::size_t>((layout.cols - 1) * layout.ld + layout.rows) *
         ElementBytes(layout.type);
}

std::string Unlike(const char* what, std::int64_t got, const char* wanted, std::int64_t want) {
  return std::string(what) + " is " + std::to_string(got) + ", " + wanted + " " +
         std::to_string(want);
}

bool IsAligned(const void* p, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

std::string WhyNotBuffer(const char* name, const void* data, std::size_t bytes,
                         std::size_t alignment) {
  if (!IsAligned(data, alignment)) {
    const auto at = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) % alignment);
    return Unlike((std::string(name) + "'s address modulo its alignment").c_str(), at,
                  "and it was to be aligned to", static_cast<std::int64_t>(alignment));
  }
  if (bytes > 0 && !cuda_standin::IsDevice(data, bytes)) {
    return std::string(name) + "'s " + std::to_string(bytes) +
           " bytes are not in one piece of device memory";
  }
  return {};
}

float Widen(const std::byte* p, cudaDataType_t type) {
  if (type == CUDA_R_32F) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return type == CUDA_R_16F ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
}

// The columns one after another, as floats. [cols][rows]
std::vector<float> Columns(const std::byte* data, const Layout& layout) {
  const std::size_t bytes = ElementBytes(layout.type);
  std::vector<float> all;
  all.reserve(static_cast<std::size_t>(layout.rows * layout.cols));
  for (std::int64_t c = 0; c < layout.cols; ++c) {
    for (std::int64_t r = 0; r < layout.rows; ++r) {
      all.push_back(Widen(data + static_cast<std::size_t>(r + c * layout.ld) * bytes, layout.type));
    }
  }
  return all;
}

// In the order that the algorithm has.
float Sum(const float* a, const float* b, std::int64_t k, const Algo& algo) {
  const std::int64_t piece = (k + algo.split - 1) / algo.split;
  const int ways = 1 << algo.id;
  float all = 0;
  for (std::int64_t begin = 0; begin < k; begin += piece) {
    const std::int64_t end = std::min(k, begin + piece);
    float sums[1 << (kAlgos - 1)] = {};
    for (std::int64_t i = begin; i < end; ++i) {
      float& sum = sums[(i - begin) % ways];
      sum = std::fma(a[i], b[i], sum);
    }
    float of_piece = sums[0];
    for (int way = 1; way < ways; ++way) of_piece += sums[way];
    all = begin == 0 ? of_piece : all + of_piece;
  }
  return all;
}

}  // namespace

Algo BestAlgo(const Layout& d, std::size_t workspace_bytes) {
  Algo algo;
  algo.id = d.cols > kRowsOfPlainSums ? 0 : d.cols % 2 == 0 ? 1 : 2;
  algo.split = d.cols <= kRowsOfTwo ? 4 : d.cols <= kRowsOfOne ? 2 : 1;
  while (WorkspaceBytes(algo, d) > workspace_bytes) algo.split /= 2;
  return algo;
}

std::size_t WorkspaceBytes(const Algo& algo, const Layout& d) {
  if (algo.split == 1) return 0;
  return static_cast<std::size_t>(algo.split * d.rows * d.cols) * sizeof(float);
}

std::string WhyNotShapes(const Layout& a, const Layout& b, const Layout& d) {
  if (a.rows != b.rows) return Unlike("A's k", a.rows, "and B's", b.rows);
  if (d.rows != a.cols) return Unlike("D's rows", d.rows, "and those of A transposed", a.cols);
  if (d.cols != b.cols) return Unlike("D's columns", d.cols, "and B's", b.cols);
  for (const auto& [name, layout] : {std::pair{"A", a}, {"B", b}, {"D", d}}) {
    if (layout.rows < 1 || layout.cols < 1) {
      return Unlike((std::string(name) + "'s rows").c_str(), layout.rows, "its columns",
                    layout.cols);
    }
    if (layout.ld < layout.rows) {
      return Unlike((std::string(name) + "'s leading dimension").c_str(), layout.ld, "its rows",
                    layout.rows);
    }
  }
  return {};
}

std::string WhyNotBuffers(const Product& p, const void* workspace, std::size_t workspace_bytes) {
  const std::size_t needed = WorkspaceBytes(p.algo, p.d_layout);
  if (needed > workspace_bytes) {
    return Unlike("the workspace's size", static_cast<std::int64_t>(workspace_bytes),
                  "the algorithm needs", static_cast<std::int64_t>(needed));
  }
  const bool biased = p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS;
  const struct {
    const char* name;
    const void* data;
    std::size_t bytes;
    std::size_t alignment;
  } buffers[] = {
      {"A", p.a, Bytes(p.a_layout),
       std::max<std::size_t>(p.algo.alignment[0], ElementBytes(p.a_layout.type))},
      {"B", p.b, Bytes(p.b_layout),
       std::max<std::size_t>(p.algo.alignment[1], ElementBytes(p.b_layout.type))},
      {"D", p.d, Bytes(p.d_layout), std::max<std::size_t>(p.algo.alignment[3], sizeof(float))},
      {"the bias", p.desc.bias,
       biased ? static_cast<std::size_t>(p.d_layout.rows) * sizeof(float) : 0,
       biased ? kBiasAlignment : 1},
      {"the workspace", workspace, needed, kWorkspaceAlignment}};
  for (const auto& buffer : buffers) {
    std::string why = WhyNotBuffer(buffer.name, buffer.data, buffer.bytes, buffer.alignment);
    if (!why.empty()) return why;
  }
  return {};
}

void Compute(const Product& p) {
  const std::vector<float> a = Columns(p.a, p.a_layout), b = Columns(p.b, p.b_layout);
  const std::int64_t k = p.a_layout.rows;
  for (std::int64_t column = 0; column < p.d_layout.cols; ++column) {
    for (std::int64_t row = 0; row < p.d_layout.rows; ++row) {
      float& d = p.d[row + column * p.d_layout.ld];
      float value = p.alpha * Sum(a.data() + row * k, b.data() + column * k, k, p.algo);
      if (p.beta != 0) value += p.beta * d;  // Else D may hold anything.
      if (p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS) value += p.desc.bias[row];
      d = value;
    }
  }
}

}  // namespace penstock::cublas_lt_standin
