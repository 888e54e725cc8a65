// SPDX-License-Identifier: Apache-2.0
#include "device/cudnn_graph.h"

namespace penstock {
namespace {

constexpr std::int64_t kAlignment = 16;
constexpr std::int64_t kConfigsMax = 16;

}  // namespace

CudnnGraph::~CudnnGraph() {
  for (auto d = descriptors_.rbegin(); d != descriptors_.rend(); ++d) {
    (void)cudnn_.destroy_descriptor(*d);
  }
}

CudnnGraph::Dims CudnnGraph::Packed(const Dims& dims) {
  return {{dims.n[1] * dims.n[2] * dims.n[3], dims.n[2] * dims.n[3], dims.n[3], 1}};
}

void CudnnGraph::Expect(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS || !why_.empty()) return;
  char more[256] = {};
  cudnn_.get_last_error_string(more, sizeof(more));
  why_ = std::string(what) + ": " + cudnn_.get_error_string(status);
  if (more[0] != 0) why_ += std::string(" (") + more + ")";
}

CudnnGraph::Descriptor CudnnGraph::New(cudnnBackendDescriptorType_t type) {
  if (!why_.empty()) return nullptr;
  Descriptor made = nullptr;
  Expect(cudnn_.create_descriptor(type, &made), "create a descriptor");
  if (why_.empty()) descriptors_.push_back(made);
  return made;
}

void CudnnGraph::Set(Descriptor descriptor, cudnnBackendAttributeName_t name,
                     cudnnBackendAttributeType_t type, std::int64_t count, const void* values) {
  if (!why_.empty()) return;
  const cudnnStatus_t status = cudnn_.set_attribute(descriptor, name, type, count, values);
  if (status != CUDNN_STATUS_SUCCESS) {
    Expect(status, ("set attribute " + std::to_string(static_cast<int>(name))).c_str());
  }
}

void CudnnGraph::SetDescriptor(Descriptor descriptor, cudnnBackendAttributeName_t name,
                               Descriptor value) {
  if (value != nullptr) Set(descriptor, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

void CudnnGraph::Finish(Descriptor descriptor) {
  if (why_.empty()) Expect(cudnn_.finalize(descriptor), "finalize");
}

CudnnGraph::Descriptor CudnnGraph::TensorWith(std::int64_t uid, cudnnDataType_t type,
                                              const Dims& dims, const Dims& strides) {
  const Descriptor made = New(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  Set(made, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  Set(made, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.n);
  Set(made, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.n);
  Set(made, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
  Set(made, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &kAlignment);
  return made;
}

CudnnGraph::Descriptor CudnnGraph::Tensor(std::int64_t uid, cudnnDataType_t type, const Dims& dims,
                                          const Dims& strides, Descriptor ragged) {
  const Descriptor made = TensorWith(uid, type, dims, strides);
  SetDescriptor(made, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, ragged);
  Finish(made);
  return made;
}

CudnnGraph::Descriptor CudnnGraph::Scalar(std::int64_t uid, cudnnDataType_t type) {
  const Descriptor made = TensorWith(uid, type, {}, {});
  const bool yes = true;
  Set(made, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
  Finish(made);
  return made;
}

CudnnGraph::Descriptor CudnnGraph::Virtual(cudnnDataType_t type, const Dims& dims,
                                           const Dims& strides) {
  const Descriptor made = TensorWith(virtual_uid_++, type, dims, strides);
  const bool yes = true;
  Set(made, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes);
  Finish(made);
  return made;
}

void CudnnGraph::LoadPages(Descriptor container, Descriptor pages, Descriptor lengths,
                           Descriptor out) {
  const Descriptor made = New(CUDNN_BACKEND_OPERATION_PAGED_CACHE_LOAD_DESCRIPTOR);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_CONTAINER_DESC, container);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_PAGE_TABLE_DESC, pages);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_SEQUENCE_DESC, lengths);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_YDESC, out);
  Finish(made);
  operations_.push_back(made);
}

void CudnnGraph::Matmul(Descriptor a, Descriptor b, const Lengths& lengths, Descriptor out) {
  const Descriptor how = New(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  Set(how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  const double padding = 0;
  if (lengths.pads) Set(how, CUDNN_ATTR_MATMUL_PADDING_VALUE, CUDNN_TYPE_DOUBLE, 1, &padding);
  Finish(how);
  const Descriptor made = New(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_MATMUL_CDESC, out);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, lengths.m);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, lengths.n);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, lengths.k);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
  Finish(made);
  operations_.push_back(made);
}

void CudnnGraph::Pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute, const Inputs& inputs,
                           Descriptor out) {
  const Descriptor how = New(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  Set(how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  Set(how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  if (inputs.axis >= 0) Set(how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &inputs.axis);
  Finish(how);
  const Descriptor made = New(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, inputs.x);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, inputs.b);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, inputs.mask);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
  Finish(made);
  operations_.push_back(made);
}

void CudnnGraph::Reduce(cudnnReduceTensorOp_t mode, Descriptor x, Descriptor out) {
  const Descriptor how = New(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  Set(how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  Set(how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
  Finish(how);
  const Descriptor made = New(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, out);
  SetDescriptor(made, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
  Finish(made);
  operations_.push_back(made);
}

CudnnGraph::Descriptor CudnnGraph::Properties(const std::string& json) {
  const Descriptor made = New(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  Set(made, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
      static_cast<std::int64_t>(json.size()), json.data());
  Finish(made);
  return made;
}

std::vector<CudnnGraph::Descriptor> CudnnGraph::Configs(const Gpu& gpu) {
  const Descriptor graph = New(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  Set(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
      static_cast<std::int64_t>(operations_.size()), operations_.data());
  if (gpu.handle != nullptr) {
    Set(graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &gpu.handle);
  }
  Finish(graph);
  const Descriptor choice = New(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  SetDescriptor(choice, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  Set(choice, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  SetDescriptor(choice, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, gpu.properties);
  Finish(choice);
  std::vector<Descriptor> configs(kConfigsMax);
  for (Descriptor& config : configs) config = New(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  std::int64_t found = 0;
  if (why_.empty()) {
    Expect(cudnn_.get_attribute(choice, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                CUDNN_TYPE_BACKEND_DESCRIPTOR, kConfigsMax, &found, configs.data()),
           "choose an engine");
  }
  if (why_.empty() && found == 0) why_ = "cuDNN has no engine for this";
  configs.resize(why_.empty() ? static_cast<std::size_t>(found) : 0);
  return configs;
}

CudnnGraph::Descriptor CudnnGraph::Plan(const Gpu& gpu, const std::vector<Descriptor>& configs,
                                        std::int64_t* workspace_bytes) {
  for (std::size_t i = 0; i < configs.size(); ++i) {
    if (i > 0) why_.clear();
    const Descriptor plan = New(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    SetDescriptor(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[i]);
    SetDescriptor(plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, gpu.properties);
    if (gpu.handle != nullptr) {
      Set(plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &gpu.handle);
    }
    Finish(plan);
    if (why_.empty()) {
      std::int64_t count = 0;
      Expect(cudnn_.get_attribute(plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                                  1, &count, workspace_bytes),
             "ask for the workspace");
    }
    if (why_.empty()) return plan;
  }
  return nullptr;
}

CudnnGraph::Descriptor CudnnGraph::Pack(const std::vector<std::int64_t>& uids,
                                        const std::vector<const void*>& data, void* workspace) {
  const Descriptor pack = New(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  const auto count = static_cast<std::int64_t>(uids.size());
  Set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, uids.data());
  Set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, data.data());
  Set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  Finish(pack);
  return pack;
}

}  // namespace penstock
