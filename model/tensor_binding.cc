// SPDX-License-Identifier: Apache-2.0
#include "model/tensor_binding.h"

#include <algorithm>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::model {
namespace {

using Shape = std::vector<std::int64_t>;

struct Need {
  const Tensor* LayerTensors::*member;
  bool required;
  Shape shape;
};

std::vector<Need> LayerNeeds(const Architecture& a) {
  const std::int64_t d = a.d_model;
  const std::int64_t q = std::int64_t{a.qo_heads} * a.head_dim;
  const std::int64_t kv = std::int64_t{a.kv_heads} * a.head_dim;
  return {{&LayerTensors::attn_norm, true, {d}},
          {&LayerTensors::q, true, {q, d}},
          {&LayerTensors::k, true, {kv, d}},
          {&LayerTensors::v, true, {kv, d}},
          {&LayerTensors::o, true, {d, q}},
          {&LayerTensors::q_bias, a.qkv_bias, {q}},
          {&LayerTensors::k_bias, a.qkv_bias, {kv}},
          {&LayerTensors::v_bias, a.qkv_bias, {kv}},
          {&LayerTensors::q_norm, a.qk_norm, {a.head_dim}},
          {&LayerTensors::k_norm, a.qk_norm, {a.head_dim}},
          {&LayerTensors::post_attn_norm, a.post_norms, {d}},
          {&LayerTensors::ffn_norm, true, {d}},
          {&LayerTensors::gate, true, {a.ffn_dim, d}},
          {&LayerTensors::up, true, {a.ffn_dim, d}},
          {&LayerTensors::down, true, {d, a.ffn_dim}},
          {&LayerTensors::post_ffn_norm, a.post_norms, {d}}};
}

std::string Printable(std::string_view name) {
  return absl::CHexEscape(ToAbsl(name.substr(0, 100)));
}

class Binder {
 public:
  explicit Binder(const std::vector<Tensor>& tensors) : used_(tensors.size()), tensors_(tensors) {
    for (std::size_t i = 0; i < tensors.size(); ++i) by_name_.try_emplace(tensors[i].name, i);
  }

  absl::StatusOr<const Tensor*> Take(std::string_view name, const Shape& shape) {
    const auto it = by_name_.find(ToAbsl(name));
    if (it == by_name_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", ToAbsl(name), " is missing"));
    }
    used_[it->second] = true;
    const Tensor& tensor = tensors_[it->second];
    if (tensor.shape != shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor ", ToAbsl(name), " must have the shape [", absl::StrJoin(shape, ", "), "], got [",
          absl::StrJoin(tensor.shape, ", "), "]"));
    }
    return &tensor;
  }

  absl::Status CheckAllUsed(const TensorNames& names, const Architecture& a) const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (used_[i]) continue;
      const std::string_view name = tensors_[i].name;
      if (a.tied_head && name == names.head) continue;
      if (std::any_of(names.ignored.begin(), names.ignored.end(), [name](std::string_view part) {
            return name.find(part) != std::string_view::npos;
          })) {
        continue;
      }
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(name),
                                                     " is none that the architecture ", a.family,
                                                     " with ", a.layers.size(), " layers has"));
    }
    return absl::OkStatus();
  }

 private:
  std::vector<bool> used_;
  const std::vector<Tensor>& tensors_;
  absl::flat_hash_map<std::string, std::size_t> by_name_;
};

}  // namespace

absl::StatusOr<ModelTensors> BindTensors(const TensorNames& names, const Architecture& a,
                                         const std::vector<Tensor>& tensors) {
  Binder binder(tensors);
  ModelTensors out;
  ASSIGN_OR_RETURN(out.embedding, binder.Take(names.embedding, {a.vocab, a.d_model}));
  ASSIGN_OR_RETURN(out.output_norm, binder.Take(names.output_norm, {a.d_model}));
  if (!a.tied_head) {
    ASSIGN_OR_RETURN(out.head, binder.Take(names.head, {a.vocab, a.d_model}));
  }
  const std::vector<Need> needs = LayerNeeds(a);
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    LayerTensors& layer = out.layers.emplace_back();
    for (const Need& need : needs) {
      if (!need.required) continue;
      const auto role =
          std::find_if(names.layer.begin(), names.layer.end(),
                       [&need](const TensorNames::Role& r) { return r.member == need.member; });
      CHECK(role != names.layer.end());
      const std::string name = absl::StrCat(ToAbsl(names.layer_prefix), i, ".", ToAbsl(role->name));
      ASSIGN_OR_RETURN(layer.*need.member, binder.Take(name, need.shape));
    }
  }
  RETURN_IF_ERROR(binder.CheckAllUsed(names, a));
  return out;
}

const Tensor* FindTensor(const std::vector<Tensor>& tensors, std::string_view name) {
  const auto it = std::find_if(tensors.begin(), tensors.end(),
                               [name](const Tensor& t) { return t.name == name; });
  return it == tensors.end() ? nullptr : &*it;
}

}  // namespace penstock::model
