// SPDX-License-Identifier: Apache-2.0
#include "kvstore/codecs/codec_id.h"

#include "base/status.h"

namespace penstock::kvstore {

std::string_view ToString(CodecId id) {
  switch (id) {
    case CodecId::kRaw:
      return "raw";
    case CodecId::kPlanes:
      return "planes";
    case CodecId::kPlanesZstd:
      return "planes+zstd";
    case CodecId::kInt8:
      return "int8";
    case CodecId::kK8v4:
      return "k8v4";
    case CodecId::kKivi4:
      return "kivi4";
    case CodecId::kKivi2:
      return "kivi2";
    case CodecId::kAnsFine:
      return "ans-fine";
    case CodecId::kAnsMedium:
      return "ans-medium";
    case CodecId::kAnsCoarse:
      return "ans-coarse";
  }
  return "unknown";
}

std::span<const CodecId> AllCodecs() {
  static constexpr CodecId kAll[] = {CodecId::kRaw,      CodecId::kPlanes,  CodecId::kPlanesZstd,
                                     CodecId::kInt8,     CodecId::kK8v4,    CodecId::kKivi4,
                                     CodecId::kKivi2,    CodecId::kAnsFine, CodecId::kAnsMedium,
                                     CodecId::kAnsCoarse};
  return kAll;
}

absl::StatusOr<CodecId> ParseCodecId(std::string_view name) {
  std::string names;
  for (const CodecId id : AllCodecs()) {
    if (ToString(id) == name) return id;
    absl::StrAppend(&names, names.empty() ? "" : ", ", ToAbsl(ToString(id)));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("codec must be one of ", names, ", got '", ToAbsl(name.substr(0, 64)), "'"));
}

absl::Status CheckTakes(CodecId id, KvDtype dtype) {
  if (id == CodecId::kRaw || dtype != KvDtype::kInt8) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("codec ", ToAbsl(ToString(id)), " takes no ",
                                                 ToAbsl(ToString(dtype)), " KV; raw does"));
}

}  // namespace penstock::kvstore
