// SPDX-License-Identifier: Apache-2.0
// The stand-in's descriptors: which attributes each has, what was set, and what that says. Inside
// the stand-in only; plain values.
#pragma once

#include <cudnn_graph.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device/cudnn_standin_program.h"

namespace penstock::cudnn_standin {

struct Descriptor {
  struct Value {
    std::int64_t count = 0;
    std::vector<std::byte> bytes;
  };
  cudnnBackendDescriptorType_t type = CUDNN_BACKEND_POINTWISE_DESCRIPTOR;
  bool finished = false;
  std::map<int, Value> values;             // By attribute.
  std::shared_ptr<const Program> program;  // Of a graph, and what was made of it.

  bool Has(cudnnBackendAttributeName_t name) const { return values.contains(name); }
  template <typename T>
  std::vector<T> All(cudnnBackendAttributeName_t name) const;
  template <typename T>
  T One(cudnnBackendAttributeName_t name) const {
    return All<T>(name).at(0);
  }
  const Descriptor* Of(cudnnBackendAttributeName_t name) const {  // Null where it is not set.
    return Has(name) ? static_cast<const Descriptor*>(One<void*>(name)) : nullptr;
  }
};

// How cuDNN takes it; with anything but success `why` says more.
cudnnStatus_t SetAttribute(Descriptor& descriptor, cudnnBackendAttributeName_t name,
                           cudnnBackendAttributeType_t type, std::int64_t count, const void* values,
                           std::string* why);
// Checks what is set, and makes the program of a graph. What it names is read here alone.
cudnnStatus_t Finish(Descriptor& descriptor, std::string* why);

}  // namespace penstock::cudnn_standin
