// SPDX-License-Identifier: Apache-2.0
#include "device/cudnn_standin_program.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/float16.h"
#include "device/cuda_standin.h"

namespace penstock::cudnn_standin {
namespace {

std::int64_t Bytes(cudnnDataType_t type) {
  return type == CUDNN_DATA_HALF || type == CUDNN_DATA_BFLOAT16 ? 2 : 4;
}
float Get(cudnnDataType_t type, const void* data, std::int64_t i) {
  if (type == CUDNN_DATA_HALF) return ToFloat(static_cast<const F16*>(data)[i]);
  if (type == CUDNN_DATA_BFLOAT16) return ToFloat(static_cast<const BF16*>(data)[i]);
  if (type == CUDNN_DATA_INT32) {
    return static_cast<float>(static_cast<const std::int32_t*>(data)[i]);
  }
  return static_cast<const float*>(data)[i];
}
float Rounded(cudnnDataType_t type, float x) {
  if (type == CUDNN_DATA_HALF) return ToFloat(ToF16(x));
  if (type == CUDNN_DATA_BFLOAT16) return ToFloat(ToBF16(x));
  return x;
}
std::int32_t Int(const Addresses& at, std::int64_t uid, std::int64_t i) {
  return static_cast<const std::int32_t*>(at.at(uid))[i];
}
bool AreDims(const Tensor& t, std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
  return t.dims[0] == a && t.dims[1] == b && t.dims[2] == c && t.dims[3] == d;
}
// As a loaded K is: [sequence, head, element, token], the elements of a token side by side.
bool IsTransposed(const Tensor& t) { return t.strides[2] == 1 && t.strides[3] != 1; }

float Compute(int mode, float x, float b, float mask) {
  switch (mode) {
    case CUDNN_POINTWISE_MUL:
      return x * b;
    case CUDNN_POINTWISE_ADD:
      return x + b;
    case CUDNN_POINTWISE_SUB:
      return x - b;
    case CUDNN_POINTWISE_DIV:
      return x / b;
    case CUDNN_POINTWISE_EXP:
      return std::exp(x);
    case CUDNN_POINTWISE_CMP_LT:
      return x < b ? 1 : 0;
    case CUDNN_POINTWISE_CMP_GE:
      return x >= b ? 1 : 0;
    case CUDNN_POINTWISE_LOGICAL_AND:
      return x != 0 && b != 0 ? 1 : 0;
    case CUDNN_POINTWISE_BINARY_SELECT:
      return mask != 0 ? x : b;
    default:
      return std::numeric_limits<float>::quiet_NaN();
  }
}
constexpr int kModes[] = {CUDNN_POINTWISE_MUL,           CUDNN_POINTWISE_ADD,
                          CUDNN_POINTWISE_SUB,           CUDNN_POINTWISE_DIV,
                          CUDNN_POINTWISE_EXP,           CUDNN_POINTWISE_CMP_LT,
                          CUDNN_POINTWISE_CMP_GE,        CUDNN_POINTWISE_LOGICAL_AND,
                          CUDNN_POINTWISE_BINARY_SELECT, CUDNN_POINTWISE_GEN_INDEX};

}  // namespace

// One row of the scores: of query token `token` of head `head` of a sequence.
struct Program::Row {
  const Addresses& at;
  float factor;
  float first;  // The factor of its first element.
  std::int64_t sequence = 0, head = 0, token = 0;
  std::map<std::int64_t, std::vector<float>> values = {};  // By virtual uid.

  // Element i of the row of what is one wide, or as wide as the scores.
  float Value(const Tensor& t, std::int64_t i) const {
    if (t.is_virtual) {
      const std::vector<float>& row = values.at(t.uid);
      return row[static_cast<std::size_t>(row.size() == 1 ? 0 : i)];
    }
    return Get(t.type, at.at(t.uid), t.dims[0] == 1 ? 0 : sequence * t.strides[0]);
  }
};

std::string Program::Add(const Step& step, const std::vector<Tensor>& tensors) {
  for (const Tensor& t : tensors) {
    const auto [known, is_new] = tensors_.emplace(t.uid, t);
    if (!is_new &&
        (!std::equal(t.dims, t.dims + 4, known->second.dims) || known->second.type != t.type)) {
      return "two tensors have uid " + std::to_string(t.uid);
    }
  }
  if (made_by_.contains(step.out)) return "a tensor is made twice";
  for (const std::int64_t uid : {step.x, step.b, step.mask, step.m, step.n, step.k}) {
    if (uid != 0 && At(uid).is_virtual && !made_by_.contains(uid)) {
      return "tensor " + std::to_string(uid) + " is used before it is made";
    }
  }
  if (std::string why = Check(step); !why.empty()) return why;
  made_by_[step.out] = steps_.size();
  steps_.push_back(step);
  return {};
}

std::string Program::Check(const Step& step) const {
  const Tensor& x = At(step.x);
  const Tensor& out = At(step.out);
  if (step.kind == Kind::kLoad) {
    const Tensor& table = At(step.b);
    const std::int64_t tokens = table.dims[2] * x.dims[2];
    const bool fits = IsTransposed(out) ? AreDims(out, table.dims[0], x.dims[1], x.dims[3], tokens)
                                        : AreDims(out, table.dims[0], x.dims[1], tokens, x.dims[3]);
    if (!fits || !AreDims(At(step.n), table.dims[0], 1, 1, 1)) return "pages do not fit";
    if (table.type != CUDNN_DATA_INT32 || x.type != out.type) return "pages are of another type";
    return {};
  }
  if (step.kind == Kind::kMatmul) {
    const Tensor& b = At(step.b);
    if (x.dims[1] % b.dims[1] != 0) return "heads do not divide";
    if (!AreDims(out, x.dims[0], x.dims[1], x.dims[2], b.dims[3]) || x.dims[3] != b.dims[2] ||
        b.dims[0] != x.dims[0]) {
      return "a product does not fit";
    }
    const bool loads = made_by_.contains(step.b) && steps_[made_by_.at(step.b)].kind == Kind::kLoad;
    return loads && x.type == b.type ? "" : "a product of what was not loaded";
  }
  if (step.kind == Kind::kReduce) {
    return AreDims(out, x.dims[0], x.dims[1], x.dims[2], 1) ? "" : "a reduction does not fit";
  }
  if (std::ranges::find(kModes, step.mode) == std::end(kModes)) return "not an operation here";
  for (const std::int64_t uid : {step.x, step.b, step.mask}) {
    if (uid == 0) continue;
    for (int d = 0; d < 4; ++d) {
      if (At(uid).dims[d] != 1 && At(uid).dims[d] != out.dims[d]) return "shapes do not fit";
    }
  }
  if (step.mode == CUDNN_POINTWISE_GEN_INDEX && step.axis != 2 && step.axis != 3) {
    return "an index without an axis";
  }
  return {};
}

std::vector<Tensor> Program::Given() const {
  std::vector<Tensor> given;
  for (const auto& [uid, tensor] : tensors_) {
    if (!tensor.is_virtual) given.push_back(tensor);
  }
  return given;
}

std::string Program::CheckMemory(const Addresses& at) const {
  const auto holds = [&](const Tensor& t, std::int64_t first, std::int64_t count) {
    return cuda_standin::IsDevice(
        static_cast<const std::byte*>(at.at(t.uid)) + first * Bytes(t.type),
        static_cast<std::size_t>(count * Bytes(t.type)));
  };
  for (const Step& step : steps_) {
    if (step.kind != Kind::kLoad) continue;
    const Tensor& pool = At(step.x);
    const Tensor& table = At(step.b);
    if (!holds(table, 0, table.dims[0] * table.dims[2])) return "a page table is not of the device";
    for (std::int64_t s = 0; s < table.dims[0]; ++s) {
      const std::int64_t tokens = Int(at, step.n, s);
      if (tokens < 0 || tokens > table.dims[2] * pool.dims[2]) return "a length beyond its table";
      for (std::int64_t page = 0; page * pool.dims[2] < tokens; ++page) {
        const std::int64_t index = Int(at, step.b, s * table.dims[2] + page);
        const std::int64_t head_bytes = pool.dims[2] * pool.dims[3];
        if (index < 0 || index >= pool.dims[0] ||
            !holds(pool, index * pool.strides[0],
                   (pool.dims[1] - 1) * pool.strides[1] + head_bytes)) {
          return "page " + std::to_string(index) + " is not in the pool";
        }
      }
    }
  }
  for (const auto& [uid, t] : tensors_) {
    if (t.ragged_uid == 0) continue;
    for (std::int64_t s = 0; s < t.dims[0]; ++s) {
      const std::int64_t begin = Int(at, t.ragged_uid, s);
      const std::int64_t end = Int(at, t.ragged_uid, s + 1);
      if (begin > end || (begin != end && !holds(t, begin, end - begin))) {
        return "rows of a sequence are not of the device";
      }
    }
  }
  return {};
}

std::string Program::Run(const Addresses& at, float factor, float first) const {
  if (std::string why = CheckMemory(at); !why.empty()) return why;
  for (const Step& last : steps_) {
    if (last.kind != Kind::kMatmul || At(last.out).is_virtual) continue;
    const Tensor& out = At(last.out);
    for (std::int64_t s = 0; s < out.dims[0]; ++s) {
      const std::int64_t tokens = last.m == 0 ? out.dims[2] : Int(at, last.m, s);
      if (tokens > out.dims[2]) return "more query tokens than the graph has";
      for (std::int64_t h = 0; h < out.dims[1]; ++h) {
        for (std::int64_t t = 0; t < tokens; ++t) {
          Row row{.at = at,
                  .factor = factor,
                  .first = s + h + t == 0 ? first : factor,
                  .sequence = s,
                  .head = h,
                  .token = t};
          RunRow(row);
        }
      }
    }
  }
  return {};
}

void Program::RunRow(Row& row) const {
  for (const Step& step : steps_) {
    if (step.kind == Kind::kMatmul) Multiply(step, row);
    if (step.kind == Kind::kPointwise) Point(step, row);
    if (step.kind != Kind::kReduce) continue;
    const bool is_max = step.mode == CUDNN_REDUCE_TENSOR_MAX;
    float all = is_max ? -std::numeric_limits<float>::infinity() : 0;
    for (const float v : row.values.at(step.x)) all = is_max ? std::max(all, v) : all + v;
    row.values[step.out] = {all};
  }
}

void Program::Point(const Step& step, Row& row) const {
  const Tensor& out = At(step.out);
  std::vector<float> result(static_cast<std::size_t>(out.dims[3]));
  for (std::int64_t i = 0; i < out.dims[3]; ++i) {
    float& value = result[static_cast<std::size_t>(i)];
    if (step.mode == CUDNN_POINTWISE_GEN_INDEX) {
      value = static_cast<float>(step.axis == 2 ? row.token : i);
      continue;
    }
    const float b = step.b == 0 ? 0 : row.Value(At(step.b), i);
    const float mask = step.mask == 0 ? 0 : row.Value(At(step.mask), i);
    value = Rounded(out.type, Compute(step.mode, row.Value(At(step.x), i), b, mask));
  }
  row.values[step.out] = std::move(result);
}

// A row times what was loaded: K, whose tokens are columns, or V, whose tokens are rows.
void Program::Multiply(const Step& step, Row& row) const {
  const Tensor& x = At(step.x);
  const Tensor& out = At(step.out);
  const Step& load = steps_[made_by_.at(step.b)];
  const Tensor& loaded = At(step.b);
  const Tensor& pool = At(load.x);
  const Tensor& table = At(load.b);
  const bool is_transposed = IsTransposed(loaded);
  const std::int64_t dim = pool.dims[3];
  const std::int64_t head = row.head / (x.dims[1] / loaded.dims[1]);
  const auto begin_of = [&](const Tensor& t) {
    const std::int64_t first =
        t.ragged_uid == 0 ? row.sequence * t.strides[0] : Int(row.at, t.ragged_uid, row.sequence);
    return first + row.head * t.strides[1] + row.token * t.strides[2];
  };
  const std::int64_t lengths = is_transposed ? step.n : step.k;
  const std::int64_t all = is_transposed ? loaded.dims[3] : loaded.dims[2];
  const std::int64_t tokens =
      lengths == 0 ? all : std::min<std::int64_t>(all, Int(row.at, lengths, row.sequence));
  std::vector<float> left(static_cast<std::size_t>(x.dims[3]));
  for (std::int64_t i = 0; i < x.dims[3]; ++i) {
    left[static_cast<std::size_t>(i)] =
        x.is_virtual ? row.Value(x, i) : Get(x.type, row.at.at(step.x), begin_of(x) + i);
  }
  std::vector<float> result(static_cast<std::size_t>(out.dims[3]));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t page = Int(row.at, load.b, row.sequence * table.dims[2] + t / pool.dims[2]);
    const std::int64_t from =
        page * pool.strides[0] + head * pool.strides[1] + t % pool.dims[2] * pool.strides[2];
    const void* const values = row.at.at(load.x);
    for (std::int64_t i = 0; i < dim; ++i) {
      const float value = Get(pool.type, values, from + i * pool.strides[3]);
      result[static_cast<std::size_t>(is_transposed ? t : i)] +=
          left[static_cast<std::size_t>(is_transposed ? i : t)] * value;
    }
  }
  if (out.is_virtual) {
    for (float& value : result) value = Rounded(out.type, value);
    row.values[step.out] = std::move(result);
    return;
  }
  for (std::int64_t i = 0; i < dim; ++i) {
    const float value = result[static_cast<std::size_t>(i)] * (i == 0 ? row.first : row.factor);
    const std::int64_t to = begin_of(out) + i * out.strides[3];
    if (out.type == CUDNN_DATA_HALF) static_cast<F16*>(row.at.at(step.out))[to] = ToF16(value);
    if (out.type == CUDNN_DATA_BFLOAT16) {
      static_cast<BF16*>(row.at.at(step.out))[to] = ToBF16(value);
    }
  }
}

}  // namespace penstock::cudnn_standin
