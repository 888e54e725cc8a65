// SPDX-License-Identifier: Apache-2.0
#include "device/cudnn_standin_descriptor.h"

#include <algorithm>
#include <cstring>

namespace penstock::cudnn_standin {
namespace {

// What may be set.
struct Rule {
  cudnnBackendDescriptorType_t of;
  cudnnBackendAttributeName_t name;
  cudnnBackendAttributeType_t type;
  std::int64_t count;  // 0: any.
  bool needed;
};
constexpr Rule kRules[] = {
#define OF CUDNN_BACKEND_TENSOR_DESCRIPTOR
    {OF, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true},
    {OF, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, true},
    {OF, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, true},
    {OF, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, true},
    {OF, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, true},
    {OF, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, false},
    {OF, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, false},
    {OF, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, false},
#undef OF
#define OF CUDNN_BACKEND_MATMUL_DESCRIPTOR
    {OF, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true},
    {OF, CUDNN_ATTR_MATMUL_PADDING_VALUE, CUDNN_TYPE_DOUBLE, 1, false},
#undef OF
#define OF CUDNN_BACKEND_POINTWISE_DESCRIPTOR
    {OF, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, true},
    {OF, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, true},
    {OF, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, false},
#undef OF
#define OF CUDNN_BACKEND_REDUCTION_DESCRIPTOR
    {OF, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true},
    {OF, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, true},
#undef OF
#define OF CUDNN_BACKEND_OPERATION_PAGED_CACHE_LOAD_DESCRIPTOR
#define DESCRIPTOR CUDNN_TYPE_BACKEND_DESCRIPTOR, 1
    {OF, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_CONTAINER_DESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_PAGE_TABLE_DESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_SEQUENCE_DESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_YDESC, DESCRIPTOR, true},
#undef OF
#define OF CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR
    {OF, CUDNN_ATTR_OPERATION_MATMUL_ADESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_MATMUL_BDESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_MATMUL_CDESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_MATMUL_DESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, DESCRIPTOR, false},
    {OF, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, DESCRIPTOR, false},
    {OF, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, DESCRIPTOR, false},
#undef OF
#define OF CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR
    {OF, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, DESCRIPTOR, false},
    {OF, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, DESCRIPTOR, false},
    {OF, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, DESCRIPTOR, true},
#undef OF
#define OF CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR
    {OF, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_OPERATION_REDUCTION_DESC, DESCRIPTOR, true},
#undef OF
#define OF CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR
    {OF, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, true},
    {OF, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, false},
#undef OF
#define OF CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR
    {OF, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, true},
#undef OF
#define OF CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR
    {OF, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, DESCRIPTOR, true},
    {OF, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, true},
#undef OF
#define OF CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR
    {OF, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 0, true},
    {OF, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 0, true},
    {OF, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, true},
#undef OF
#undef DESCRIPTOR
};

std::size_t SizeOf(cudnnBackendAttributeType_t type) {
  switch (type) {
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
      return 8;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
      return sizeof(void*);
    case CUDNN_TYPE_BOOLEAN:
      return sizeof(bool);
    default:
      return 4;  // Enumerations.
  }
}

Tensor TensorOf(const Descriptor& d) {
  Tensor t;
  t.uid = d.One<std::int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
  t.type = d.One<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE);
  std::ranges::copy(d.All<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS), t.dims);
  std::ranges::copy(d.All<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES), t.strides);
  t.is_virtual = d.Has(CUDNN_ATTR_TENSOR_IS_VIRTUAL) && d.One<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL);
  t.by_value = d.Has(CUDNN_ATTR_TENSOR_IS_BY_VALUE) && d.One<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE);
  if (const Descriptor* offsets = d.Of(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC)) {
    t.ragged_uid = offsets->One<std::int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
  }
  return t;
}

// The step that an operation is, and the tensors that it names.
struct Reading {
  const Descriptor& operation;
  Program::Step step = {};
  std::vector<Tensor> tensors = {};

  void Take(cudnnBackendAttributeName_t name, std::int64_t Program::Step::*uid) {
    const Descriptor* const found = operation.Of(name);
    if (found == nullptr) return;
    tensors.push_back(TensorOf(*found));
    step.*uid = tensors.back().uid;
    if (const Descriptor* offsets = found->Of(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC)) {
      tensors.push_back(TensorOf(*offsets));
    }
  }
  void TakeAll();
};

void Reading::TakeAll() {
  using Step = Program::Step;
  if (operation.type == CUDNN_BACKEND_OPERATION_PAGED_CACHE_LOAD_DESCRIPTOR) {
    step.kind = Program::Kind::kLoad;
    Take(CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_CONTAINER_DESC, &Step::x);
    Take(CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_PAGE_TABLE_DESC, &Step::b);
    Take(CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_SEQUENCE_DESC, &Step::n);
    Take(CUDNN_ATTR_OPERATION_PAGED_CACHE_LOAD_YDESC, &Step::out);
  } else if (operation.type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) {
    step.kind = Program::Kind::kMatmul;
    Take(CUDNN_ATTR_OPERATION_MATMUL_ADESC, &Step::x);
    Take(CUDNN_ATTR_OPERATION_MATMUL_BDESC, &Step::b);
    Take(CUDNN_ATTR_OPERATION_MATMUL_CDESC, &Step::out);
    Take(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, &Step::m);
    Take(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, &Step::n);
    Take(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, &Step::k);
  } else if (operation.type == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR) {
    step.kind = Program::Kind::kReduce;
    step.mode =
        operation.Of(CUDNN_ATTR_OPERATION_REDUCTION_DESC)->One<int>(CUDNN_ATTR_REDUCTION_OPERATOR);
    Take(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, &Step::x);
    Take(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, &Step::out);
  } else {
    step.kind = Program::Kind::kPointwise;
    const Descriptor& how = *operation.Of(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    step.mode = how.One<int>(CUDNN_ATTR_POINTWISE_MODE);
    if (how.Has(CUDNN_ATTR_POINTWISE_AXIS)) {
      step.axis = how.One<std::int64_t>(CUDNN_ATTR_POINTWISE_AXIS);
    }
    Take(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, &Step::x);
    Take(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, &Step::b);
    Take(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, &Step::mask);
    Take(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &Step::out);
  }
}

std::string WhyNotTensor(const Descriptor& d) {
  const Tensor t = TensorOf(d);
  if (std::ranges::any_of(t.dims, [](std::int64_t n) { return n <= 0; })) return "a dimension of 0";
  if (t.is_virtual && t.by_value) return "a virtual tensor has no value";
  const std::int64_t offsets =
      t.ragged_uid == 0 ? 0 : TensorOf(*d.Of(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC)).dims[0];
  if (t.ragged_uid != 0 && offsets != t.dims[0] + 1) {
    return std::to_string(offsets) + " offsets for " + std::to_string(t.dims[0]) + " sequences";
  }
  return {};
}

std::string MakeProgram(Descriptor& graph) {
  auto program = std::make_shared<Program>();
  for (void* const operation : graph.All<void*>(CUDNN_ATTR_OPERATIONGRAPH_OPS)) {
    Reading reading{.operation = *static_cast<const Descriptor*>(operation)};
    reading.TakeAll();
    if (std::string why = program->Add(reading.step, reading.tensors); !why.empty()) return why;
  }
  graph.program = std::move(program);
  return {};
}

}  // namespace

template <typename T>
std::vector<T> Descriptor::All(cudnnBackendAttributeName_t name) const {
  const Value& value = values.at(name);
  std::vector<T> all(static_cast<std::size_t>(value.count));
  for (std::size_t i = 0; i < all.size(); ++i) {
    T one;
    std::memcpy(&one, value.bytes.data() + i * sizeof(T), sizeof(T));
    all[i] = one;
  }
  return all;
}
template std::vector<std::int64_t> Descriptor::All(cudnnBackendAttributeName_t) const;
template std::vector<void*> Descriptor::All(cudnnBackendAttributeName_t) const;

cudnnStatus_t SetAttribute(Descriptor& descriptor, cudnnBackendAttributeName_t name,
                           cudnnBackendAttributeType_t type, std::int64_t count, const void* values,
                           std::string* why) {
  const std::string which = "attribute " + std::to_string(static_cast<int>(name));
  if (descriptor.finished) {
    *why = which + " set after its descriptor was finalized";
    return CUDNN_STATUS_BAD_PARAM;
  }
  const auto* const rule = std::ranges::find_if(
      kRules, [&](const Rule& r) { return r.of == descriptor.type && r.name == name; });
  if (rule == std::end(kRules)) {
    *why = which + " is none of this descriptor's";
    return CUDNN_STATUS_NOT_SUPPORTED;
  }
  if (rule->type != type) {
    *why = which + " is of another type";
    return CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE;
  }
  if (values == nullptr || count <= 0 || (rule->count != 0 && rule->count != count)) {
    *why = which + " has " + std::to_string(rule->count) + " values, got " + std::to_string(count);
    return CUDNN_STATUS_BAD_PARAM;
  }
  Descriptor::Value value;
  value.count = count;
  value.bytes.resize(SizeOf(type) * static_cast<std::size_t>(count));
  std::memcpy(value.bytes.data(), values, value.bytes.size());
  descriptor.values[name] = std::move(value);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t Finish(Descriptor& descriptor, std::string* why) {
  for (const Rule& rule : kRules) {
    if (rule.of == descriptor.type && rule.needed && !descriptor.Has(rule.name)) {
      *why = "attribute " + std::to_string(static_cast<int>(rule.name)) + " is not set";
      return CUDNN_STATUS_BAD_PARAM;
    }
  }
  if (descriptor.type == CUDNN_BACKEND_TENSOR_DESCRIPTOR) *why = WhyNotTensor(descriptor);
  if (descriptor.type == CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR) *why = MakeProgram(descriptor);
  if (descriptor.type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR) {
    descriptor.program = descriptor.Of(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)->program;
  }
  if (descriptor.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
    descriptor.program = descriptor.Of(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->program;
  }
  if (descriptor.type == CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR &&
      descriptor.values.at(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS).count !=
          descriptor.values.at(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS).count) {
    *why = "not as many addresses as numbers";
  }
  descriptor.finished = why->empty();
  return why->empty() ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_BAD_PARAM;
}

}  // namespace penstock::cudnn_standin
