// SPDX-License-Identifier: Apache-2.0
// What a graph of cuDNN's operations says, apart from its descriptors, and how it runs over memory
// of the host. Inside the stand-in only; plain values.
#pragma once

#include <cudnn_graph.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace penstock::cudnn_standin {

struct Tensor {
  std::int64_t uid = 0;
  cudnnDataType_t type = CUDNN_DATA_FLOAT;
  std::int64_t dims[4] = {};
  std::int64_t strides[4] = {};
  bool is_virtual = false;
  bool by_value = false;
  std::int64_t ragged_uid = 0;  // Of the offsets where its sequences begin; 0: none.
};

// What the caller gives: addresses by uid.
using Addresses = std::map<std::int64_t, void*>;

class Program {
 public:
  enum class Kind : std::uint8_t { kLoad, kMatmul, kPointwise, kReduce };
  struct Step {
    Kind kind = Kind::kLoad;
    int mode = 0;  // cudnnPointwiseMode_t or cudnnReduceTensorOp_t.
    std::int64_t axis = -1;
    // uids; 0: none. Of a load x is the container, b the table and n the lengths.
    std::int64_t x = 0, b = 0, mask = 0, out = 0;
    std::int64_t m = 0, n = 0, k = 0;
  };

  // Why `step` cannot follow what there is; empty: it can, and is there. `tensors`: those that it
  // names.
  std::string Add(const Step& step, const std::vector<Tensor>& tensors);
  bool empty() const { return steps_.empty(); }
  // The caller's, uid by uid.
  std::vector<Tensor> Given() const;

  // Why it cannot: what the lengths, offsets and tables say leads out of device memory.
  // What comes out is times `factor`, its first element times `first`.
  std::string Run(const Addresses& at, float factor, float first) const;

 private:
  struct Row;
  const Tensor& At(std::int64_t uid) const { return tensors_.at(uid); }
  std::string Check(const Step& step) const;
  std::string CheckMemory(const Addresses& at) const;
  void RunRow(Row& row) const;
  void Multiply(const Step& step, Row& row) const;
  void Point(const Step& step, Row& row) const;

  std::map<std::int64_t, Tensor> tensors_;
  std::map<std::int64_t, std::size_t> made_by_;  // Virtual uids, and what is written: the step.
  std::vector<Step> steps_;
};

}  // namespace penstock::cudnn_standin
