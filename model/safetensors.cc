// SPDX-License-Identifier: Apache-2.0
#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/json.h"

namespace penstock::model {
namespace {

std::string Printable(std::string_view name) {
  return absl::CHexEscape(ToAbsl(name.substr(0, 100)));
}

absl::StatusOr<kernels::WeightFormat> ParseDtype(const std::string& name, const Json& info) {
  ASSIGN_OR_RETURN(const std::string dtype, GetJsonString(info, "dtype"));
  if (dtype == "F32") return kernels::WeightFormat::kF32;
  if (dtype == "F16") return kernels::WeightFormat::kF16;
  if (dtype == "BF16") return kernels::WeightFormat::kBF16;
  return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(name),
                                                 ": dtype must be F32, F16 or BF16, got \"",
                                                 Printable(dtype), "\""));
}

absl::StatusOr<std::vector<std::int64_t>> ParseShape(const std::string& name, const Json& info) {
  const Json* shape = Member(info, "shape");
  constexpr std::size_t kDimensionsMax = 8;
  if (shape == nullptr || !shape->is_array() || shape->size() > kDimensionsMax) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(name),
                                                   ": shape must be an array of at most ",
                                                   kDimensionsMax, " sizes"));
  }
  std::vector<std::int64_t> out;
  std::uint64_t elements = 1;
  for (const Json& size : *shape) {
    constexpr std::uint64_t kElementsMax = std::uint64_t{1} << 48;  // As in GGUF.
    const std::uint64_t n = size.is_number_unsigned() ? size.get<std::uint64_t>() : 0;
    if (n < 1 || n > kElementsMax / elements) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Printable(name), ": size ", Brief(size),
                       " in its shape must be from 1 to ", kElementsMax / elements));
    }
    elements *= n;
    out.push_back(static_cast<std::int64_t>(n));
  }
  return out;
}

struct Placed {
  Tensor tensor;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

absl::StatusOr<Placed> ParseTensor(const std::string& name, const Json& info) {
  Placed out;
  out.tensor.name = name;
  ASSIGN_OR_RETURN(out.tensor.format, ParseDtype(name, info));
  ASSIGN_OR_RETURN(out.tensor.shape, ParseShape(name, info));
  const Json* offsets = Member(info, "data_offsets");
  if (offsets == nullptr || !offsets->is_array() || offsets->size() != 2 ||
      !(*offsets)[0].is_number_unsigned() || !(*offsets)[1].is_number_unsigned()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Printable(name), ": data_offsets must be two positive integers"));
  }
  out.begin = (*offsets)[0].get<std::uint64_t>();
  out.end = (*offsets)[1].get<std::uint64_t>();
  std::int64_t elements = 1;
  for (const std::int64_t n : out.tensor.shape) elements *= n;
  const std::uint64_t size = kernels::BytesOf(out.tensor.format, 1, elements);
  if (out.end < out.begin || out.end - out.begin != size) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(name), ": data_offsets ",
                                                   out.begin, " and ", out.end,
                                                   " must be the shape's ", size, " bytes apart"));
  }
  return out;
}

// Sorted by offset, the tensors fill the data without overlaps and holes.
absl::StatusOr<std::vector<Tensor>> Place(std::vector<Placed> placed,
                                          std::span<const std::byte> data) {
  std::sort(placed.begin(), placed.end(),
            [](const Placed& a, const Placed& b) { return a.begin < b.begin; });
  std::vector<Tensor> out;
  std::uint64_t at = 0;
  for (Placed& p : placed) {
    if (p.begin != at) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Printable(p.tensor.name),
                                                     ": data_offsets begin at ", p.begin,
                                                     ", the tensor before ends at ", at));
    }
    if (p.end > data.size()) {
      return absl::DataLossError(absl::StrCat("safetensors file is truncated: tensor ",
                                              Printable(p.tensor.name), " ends at ", p.end,
                                              ", the data has ", data.size(), " bytes"));
    }
    p.tensor.bytes = data.subspan(p.begin, p.end - p.begin);
    at = p.end;
    out.push_back(std::move(p.tensor));
  }
  if (at != data.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("safetensors data has ", data.size(), " bytes, its tensors take ", at));
  }
  return out;
}

}  // namespace

absl::StatusOr<std::vector<Tensor>> ParseSafetensors(std::span<const std::byte> bytes) {
  std::uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return absl::DataLossError(absl::StrCat("safetensors file is truncated: it has ", bytes.size(),
                                            " bytes, the header's length takes 8"));
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  bytes = bytes.subspan(sizeof(header_bytes));
  if (header_bytes > kSafetensorsHeaderBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("safetensors header must be at most ",
                                                   kSafetensorsHeaderBytesMax, " bytes long, got ",
                                                   header_bytes));
  }
  if (header_bytes > bytes.size()) {
    return absl::DataLossError(absl::StrCat("safetensors file is truncated: the header takes ",
                                            header_bytes, " bytes, ", bytes.size(), " are left"));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), header_bytes);
  ASSIGN_OR_RETURN(const Json header,
                   ParseJsonObject(text, "safetensors header", kSafetensorsHeaderBytesMax));
  std::vector<Placed> placed;
  for (const auto& [name, info] : header.items()) {
    if (name == "__metadata__") continue;
    ASSIGN_OR_RETURN(Placed tensor, ParseTensor(name, info));
    placed.push_back(std::move(tensor));
  }
  return Place(std::move(placed), bytes.subspan(header_bytes));
}

absl::StatusOr<std::vector<std::string>> ParseShardIndex(std::string_view text) {
  ASSIGN_OR_RETURN(const Json index, ParseJsonObject(text, "model.safetensors.index.json",
                                                     kSafetensorsHeaderBytesMax));
  const Json* map = ObjectMember(index, "weight_map");
  if (map == nullptr) {
    return absl::InvalidArgumentError("model.safetensors.index.json: weight_map must be an object");
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name[0] == '.' ||
        name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.safetensors.index.json: the shard of tensor ", Printable(tensor),
                       " must be a plain file name, got ", Brief(file)));
    }
    names.insert(name);
    constexpr std::size_t kShardsMax = 4096;
    if (names.size() > kShardsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.safetensors.index.json names more than ", kShardsMax, " shards"));
    }
  }
  if (names.empty()) {
    return absl::InvalidArgumentError("model.safetensors.index.json: weight_map is empty");
  }
  return std::vector<std::string>(names.begin(), names.end());
}

}  // namespace penstock::model
