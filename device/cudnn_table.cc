// SPDX-License-Identifier: Apache-2.0
#include "device/cudnn_table.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "device/cudnn_sdpa.h"
#include "device/cudnn_symbols.h"

namespace penstock {
namespace {

// From then on minus infinity may stand for what a mask hides.
constexpr std::size_t kVersionMin = 91000;

const CudnnSymbols& Symbols() {
  static const CudnnSymbols symbols = FindCudnnSymbols();
  return symbols;
}

CudnnSdpa* MakeSdpa(CudnnHandle handle, const CudnnSdpaShape& shape, std::size_t* workspace_bytes,
                    char* why, std::size_t why_bytes) {
  std::string fault;
  std::unique_ptr<CudnnSdpa> made = CudnnSdpa::Make(Symbols(), handle, shape, &fault);
  if (made != nullptr) {
    *workspace_bytes = made->workspace_bytes();
  } else if (why_bytes != 0) {
    const std::size_t kept = std::min(fault.size(), why_bytes - 1);
    std::memcpy(why, fault.data(), kept);
    why[kept] = 0;
  }
  return made.release();
}

const CudnnApi kCudnnApi = {
    .create = [](CudnnHandle* handle) -> int { return Symbols().create(handle); },
    .destroy = [](CudnnHandle handle) { (void)Symbols().destroy(handle); },
    .sdpa_make = MakeSdpa,
    .sdpa_free = [](CudnnSdpa* sdpa) { delete sdpa; },
    .sdpa_run = [](CudnnSdpa* sdpa, const CudnnSdpaData& data, CudaStreamHandle stream) -> int {
      return sdpa->Run(data, stream);
    },
    .get_error_string = [](int status) -> const char* {
      return Symbols().get_error_string(static_cast<cudnnStatus_t>(status));
    },
};

std::string Text(std::size_t version) {  // As CUDNN_VERSION from 9.0 on.
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

// Why those functions cannot be used; empty: they can.
std::string WhyNot(std::int64_t* version) {
  const CudnnSymbols& symbols = Symbols();
  if (!symbols.why_not.empty()) return symbols.why_not;
  const std::size_t found = symbols.get_version();
  *version = static_cast<std::int64_t>(found);
  return WhyNotCudnnVersion(found);
}

}  // namespace

std::string WhyNotCudnnVersion(std::size_t version) {
  if (version >= kVersionMin && version / 10000 == kVersionMin / 10000) return {};
  return "cuDNN is " + Text(version) + ", the plug-in needs " + Text(kVersionMin) + " or a later 9";
}

const CudnnLibrary* LoadCudnn() {
  static std::int64_t version = 0;
  static const std::string why_not = WhyNot(&version);
  static const CudnnLibrary library = {.api = why_not.empty() ? &kCudnnApi : nullptr,
                                       .version = version,
                                       .why_not = why_not.c_str()};
  return &library;
}

}  // namespace penstock
