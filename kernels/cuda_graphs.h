// SPDX-License-Identifier: Apache-2.0
// Graphs of steps that a GPU does again and again. A step is known by the key of all that its
// operations are given but for the bytes behind pointers: who has the same key can have the same
// graph.
//
// Of one stream's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "device/cuda_device.h"
#include "kernels/activations.h"
#include "kernels/batch_cuda.h"
#include "kernels/packed_matrix.h"
#include "kernels/sampling_cuda.h"

namespace penstock::kernels {

// Takes down operations with their arguments: names, numbers, addresses, and the members of structs,
// never their padding.
class StepKey {
 public:
  template <typename... Arguments>
  void Add(std::string_view operation, const Arguments&... arguments) {
    bytes_.append(operation);
    (Take(arguments), ...);
  }
  void Clear() { bytes_.clear(); }
  const std::string& bytes() const { return bytes_; }

 private:
  template <typename T>
  requires std::is_scalar_v<T>
  void Take(T value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value)); }
  void Take(const PackedMatrix& matrix);
  void Take(const Activations& activations);
  void Take(const CudaKv& kv);
  void Take(const CudaPrepare& qkv);
  void Take(const DrawKinds& kinds);
  void Take(std::span<const LinearOutput> outputs);

  std::string bytes_;
};

// The graphs of the steps last seen. A step that came once seldom comes again: it gets a graph when
// it is seen for the second time among the last kSeenMax.
class CudaGraphs {
 public:
  static constexpr std::size_t kGraphsMax = 32;  // The one used longest ago goes first.
  static constexpr std::size_t kSeenMax = 64;

  // The step's, or null.
  const CudaGraph* Find(const std::string& key);
  // Whether the step, which has no graph, should get one; from now on it has been seen.
  bool Wants(const std::string& key);
  // Nothing that was launched is still running.
  const CudaGraph* Add(std::string key, std::unique_ptr<CudaGraph> graph);

 private:
  struct Known {
    std::string key;
    std::unique_ptr<CudaGraph> graph;
  };
  std::list<Known> known_;       // The last used first.
  std::list<std::size_t> seen_;  // Hashes of keys; the last seen first.
};

}  // namespace penstock::kernels
