// SPDX-License-Identifier: Apache-2.0
// cuDNN's descriptors, put together step by step: the first call that fails is kept as why(), and
// those after it do nothing. Inside device/ only; one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "device/cudnn_symbols.h"

namespace penstock {

class CudnnGraph {
 public:
  using Descriptor = cudnnBackendDescriptor_t;
  // Four dimensions, of an attention's [sequence, head, token, element].
  struct Dims {
    std::int64_t n[4] = {1, 1, 1, 1};
  };
  static Dims Packed(const Dims& dims);  // Strides of those that lie row by row.

  explicit CudnnGraph(const CudnnSymbols& cudnn) : cudnn_(cudnn) {}
  ~CudnnGraph();  // All descriptors with it.
  CudnnGraph(const CudnnGraph&) = delete;
  CudnnGraph& operator=(const CudnnGraph&) = delete;

  const std::string& why() const { return why_; }  // Empty: all went well.

  // Of the caller's memory, under a number above 0 that is given with its address.
  Descriptor Tensor(std::int64_t uid, cudnnDataType_t type, const Dims& dims, const Dims& strides,
                    Descriptor ragged = nullptr);
  Descriptor Scalar(std::int64_t uid, cudnnDataType_t type);  // The address is the host's.
  // Between two operations.
  Descriptor Virtual(cudnnDataType_t type, const Dims& dims, const Dims& strides);

  // Operations, in the order of the calls.
  void LoadPages(Descriptor container, Descriptor pages, Descriptor lengths, Descriptor out);
  struct Lengths {  // Of a product; null: as its tensors are.
    Descriptor m = nullptr;
    Descriptor n = nullptr;
    Descriptor k = nullptr;
    bool pads = false;  // What is beyond counts as 0.
  };
  void Matmul(Descriptor a, Descriptor b, const Lengths& lengths, Descriptor out);
  struct Inputs {
    Descriptor x = nullptr;
    Descriptor b = nullptr;
    Descriptor mask = nullptr;
    std::int64_t axis = -1;
  };
  void Pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute, const Inputs& inputs,
                 Descriptor out);
  void Reduce(cudnnReduceTensorOp_t mode, Descriptor x, Descriptor out);

  // For the operations so far, of a handle's GPU or of a described one.
  struct Gpu {
    cudnnHandle_t handle = nullptr;
    Descriptor properties = nullptr;
  };
  Descriptor Properties(const std::string& json);  // As cuDNN writes them.
  // What cuDNN would take for it, best first; at least one or why().
  std::vector<Descriptor> Configs(const Gpu& gpu);
  // The first of them that can be built.
  Descriptor Plan(const Gpu& gpu, const std::vector<Descriptor>& configs,
                  std::int64_t* workspace_bytes);
  Descriptor Pack(const std::vector<std::int64_t>& uids, const std::vector<const void*>& data,
                  void* workspace);

 private:
  Descriptor New(cudnnBackendDescriptorType_t type);
  void Set(Descriptor descriptor, cudnnBackendAttributeName_t name,
           cudnnBackendAttributeType_t type, std::int64_t count, const void* values);
  void SetDescriptor(Descriptor descriptor, cudnnBackendAttributeName_t name, Descriptor value);
  void Finish(Descriptor descriptor);
  void Expect(cudnnStatus_t status, const char* what);
  Descriptor TensorWith(std::int64_t uid, cudnnDataType_t type, const Dims& dims,
                        const Dims& strides);

  const CudnnSymbols& cudnn_;
  std::string why_;
  std::vector<Descriptor> descriptors_;
  std::vector<Descriptor> operations_;
  std::int64_t virtual_uid_ = 1000;  // Above those of the caller.
};

}  // namespace penstock
