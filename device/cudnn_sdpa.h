// SPDX-License-Identifier: Apache-2.0
// Attention over a paged pool as a graph of cuDNN, and a plan for it (device/cudnn_api.h). Inside
// device/ only; one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "device/cudnn_api.h"
#include "device/cudnn_graph.h"

namespace penstock {

class CudnnSdpa {
 public:
  // Null with `why` where cuDNN has no plan. `cudnn` outlives it.
  static std::unique_ptr<CudnnSdpa> Make(const CudnnSymbols& cudnn, cudnnHandle_t handle,
                                         const CudnnSdpaShape& shape, std::string* why);
  std::size_t workspace_bytes() const { return static_cast<std::size_t>(workspace_bytes_); }
  int Run(const CudnnSdpaData& data, cudaStream_t stream);

 private:
  CudnnSdpa(const CudnnSymbols& cudnn, cudnnHandle_t handle)
      : cudnn_(cudnn), handle_(handle), graph_(cudnn) {}

  const CudnnSymbols& cudnn_;
  const cudnnHandle_t handle_;
  CudnnGraph graph_;
  CudnnGraph::Descriptor plan_ = nullptr;
  std::int64_t workspace_bytes_ = 0;
};

// As much of it as needs no GPU: why cuDNN has no engine for the shape on a GPU that is described as
// cuDNN describes it (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION); empty: it has.
std::string WhyNotCudnnSdpa(const CudnnSymbols& cudnn, const std::string& properties_json,
                            const CudnnSdpaShape& shape);

}  // namespace penstock
