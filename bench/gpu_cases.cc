// SPDX-License-Identifier: Apache-2.0
#include "bench/gpu_cases.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/kv_spec.h"
#include "base/status.h"
#include "kvstore/codecs/codec.h"
#include "nlohmann/json.hpp"

namespace penstock::bench {
namespace {

using kernels::WeightFormat;
using nlohmann::json;

constexpr std::int64_t kNumberMax = std::int64_t{1} << 20;
constexpr std::int64_t kBytesMax = std::int64_t{1} << 34;

absl::StatusOr<WeightFormat> ParseFormat(const std::string& name) {
  for (const WeightFormat format : kernels::kWeightFormats) {
    if (kernels::Info(format).name == name) return format;
  }
  return absl::InvalidArgumentError(absl::StrCat("there is no format ", name));
}

// One case's members, each read with its check.
class CaseReader {
 public:
  explicit CaseReader(const json& object) : object_(object) {}

  bool Has(const char* key) const { return object_.contains(key); }
  absl::Status Text(const char* key, std::string& out) const {
    const auto found = object_.find(key);
    if (found == object_.end() || !found->is_string()) return Fault(key, "a string");
    out = found->get<std::string>();
    return absl::OkStatus();
  }
  template <typename T>
  absl::Status Number(const char* key, T& out, std::int64_t least = 1,
                      std::int64_t most = kNumberMax) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return Fault(key, "a number");
    return Check(key, *found, least, most, out);
  }
  absl::Status Numbers(const char* key, std::vector<std::int32_t>& out) const {
    const auto found = object_.find(key);
    if (found == object_.end() || !found->is_array() || found->empty()) {
      return Fault(key, "a list of numbers");
    }
    for (const json& value : *found)
      RETURN_IF_ERROR(Check(key, value, 1, kNumberMax, out.emplace_back()));
    return absl::OkStatus();
  }
  absl::Status Flag(const char* key, bool& out) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return absl::OkStatus();
    if (!found->is_boolean()) return Fault(key, "true or false");
    out = found->get<bool>();
    return absl::OkStatus();
  }
  absl::Status Memory(const char* key, std::string& out) const {
    RETURN_IF_ERROR(Text(key, out));
    if (out == "device" || out == "pinned" || out == "pageable") return absl::OkStatus();
    return Fault(key, "device, pinned or pageable");
  }

 private:
  static absl::Status Fault(const char* key, const char* want) {
    return absl::InvalidArgumentError(absl::StrCat(key, " is not ", want));
  }
  template <typename T>
  static absl::Status Check(const char* key, const json& value, std::int64_t least,
                            std::int64_t most, T& out) {
    if (!value.is_number_integer()) return Fault(key, "a number");
    RETURN_IF_ERROR(CheckRange(key, value.get<std::int64_t>(), least, most));
    out = static_cast<T>(value.get<std::int64_t>());
    return absl::OkStatus();
  }

  const json& object_;
};

absl::Status ReadMatrices(const CaseReader& reader, GpuCase& c) {
  std::string format;
  RETURN_IF_ERROR(reader.Text("format", format));
  ASSIGN_OR_RETURN(c.format, ParseFormat(format));
  RETURN_IF_ERROR(reader.Numbers("outputs", c.outputs));
  RETURN_IF_ERROR(reader.Number("cols", c.cols));
  if (c.cols % kernels::Info(c.format).block != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cols is ", c.cols, ", not a multiple of ", kernels::Info(c.format).block));
  }
  RETURN_IF_ERROR(reader.Number("rows", c.rows));
  const auto needs = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat(c.kernel, " needs ", what, ", got outputs [",
                                                   absl::StrJoin(c.outputs, ", "), "]"));
  };
  if (c.kernel == "gated" && (c.outputs.size() != 2 || c.outputs[0] != c.outputs[1])) {
    return needs("two matrices of one size");
  }
  if ((c.kernel == "embed" || c.kernel == "unpack") && c.outputs.size() != 1) {
    return needs("one matrix");
  }
  return c.kernel == "linear" ? reader.Flag("add", c.add) : absl::OkStatus();
}

absl::Status ReadDtype(const CaseReader& reader, GpuCase& c) {
  if (!reader.Has("kv_dtype")) return absl::OkStatus();
  std::string dtype;
  RETURN_IF_ERROR(reader.Text("kv_dtype", dtype));
  ASSIGN_OR_RETURN(c.kv_dtype, ParseKvDtype(dtype));
  return absl::OkStatus();
}

absl::Status ReadAttention(const CaseReader& reader, GpuCase& c) {
  RETURN_IF_ERROR(reader.Number("qo_heads", c.qo_heads));
  RETURN_IF_ERROR(reader.Number("kv_heads", c.kv_heads));
  RETURN_IF_ERROR(reader.Number("head_dim", c.head_dim));
  RETURN_IF_ERROR(reader.Number("sequences", c.sequences));
  RETURN_IF_ERROR(reader.Number("rows", c.rows));
  RETURN_IF_ERROR(reader.Number("position", c.position, 0));
  RETURN_IF_ERROR(ReadDtype(reader, c));
  if (c.qo_heads % c.kv_heads == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("qo_heads is ", c.qo_heads, ", not a multiple of kv_heads, ", c.kv_heads));
}

absl::Status ReadUnits(const CaseReader& reader, GpuCase& c) {
  constexpr std::int64_t kUnitBytesMax = std::int64_t{1} << 30;
  RETURN_IF_ERROR(reader.Number("units", c.units));
  RETURN_IF_ERROR(reader.Number("bytes", c.bytes, 1, kUnitBytesMax));
  RETURN_IF_ERROR(reader.Number("run_bytes", c.run_bytes, 1, kUnitBytesMax));
  RETURN_IF_ERROR(reader.Flag("check_only", c.check_only));
  if (c.bytes % c.run_bytes == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("bytes is ", c.bytes, ", not a multiple of run_bytes, ", c.run_bytes));
}

absl::Status ReadCoded(const CaseReader& reader, GpuCase& c) {
  std::string codec;
  RETURN_IF_ERROR(reader.Text("codec", codec));
  ASSIGN_OR_RETURN(c.codec, kvstore::ParseCodecId(codec));
  RETURN_IF_ERROR(reader.Number("layers", c.layers, 1, 1024));
  RETURN_IF_ERROR(reader.Number("kv_heads", c.kv_heads, 1, 1024));
  RETURN_IF_ERROR(reader.Number("head_dim", c.head_dim, 8, 1024));
  RETURN_IF_ERROR(ReadDtype(reader, c));
  if (!kvstore::EncodingOf(c.codec).has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("no device makes copies by ", codec));
  }
  RETURN_IF_ERROR(kvstore::CheckTakes(c.codec, c.kv_dtype));
  if (c.head_dim % 8 == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("head_dim is ", c.head_dim, ", not a multiple of 8"));
}

absl::Status ReadCase(const json& object, GpuCase& c) {
  if (!object.is_object()) return absl::InvalidArgumentError("it is not an object");
  const CaseReader reader(object);
  RETURN_IF_ERROR(reader.Text("name", c.name));
  RETURN_IF_ERROR(reader.Text("kernel", c.kernel));
  if (c.kernel == "linear" || c.kernel == "gated" || c.kernel == "embed" || c.kernel == "unpack") {
    return ReadMatrices(reader, c);
  }
  if (c.kernel == "rms_norm" || c.kernel == "gather") {
    RETURN_IF_ERROR(reader.Number("cols", c.cols));
    return reader.Number("rows", c.rows);
  }
  if (c.kernel == "draw") {
    RETURN_IF_ERROR(reader.Number("cols", c.cols));
    RETURN_IF_ERROR(reader.Number("rows", c.rows));
    return reader.Flag("filters", c.filters);
  }
  if (c.kernel == "prepare" || c.kernel == "attention") return ReadAttention(reader, c);
  if (c.kernel == "copy") {
    RETURN_IF_ERROR(reader.Memory("from", c.from));
    RETURN_IF_ERROR(reader.Memory("to", c.to));
    return reader.Number("bytes", c.bytes, 1, kBytesMax);
  }
  if (c.kernel == "copy_units") return ReadUnits(reader, c);
  if (c.kernel == "encode_kv" || c.kernel == "decode_kv") return ReadCoded(reader, c);
  if (c.kernel == "copy_both") return reader.Number("bytes", c.bytes, 1, kBytesMax);
  return absl::InvalidArgumentError(absl::StrCat("there is no kernel ", c.kernel));
}

}  // namespace

absl::StatusOr<std::vector<GpuCase>> ReadGpuCases(std::istream& in) {
  const json list = json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) return absl::InvalidArgumentError("the cases are not a JSON array");
  std::vector<GpuCase> cases;
  for (const json& object : list) {
    const absl::Status read = ReadCase(object, cases.emplace_back());
    if (read.ok()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("case ", cases.size(), " ", cases.back().name, ": ", read.message()));
  }
  return cases;
}

}  // namespace penstock::bench
