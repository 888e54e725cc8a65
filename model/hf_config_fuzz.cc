// SPDX-License-Identifier: Apache-2.0
// Any text as config.json: an error, or an architecture that holds together.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "model/hf_model.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock;
  const auto config =
      model::ParseJsonObject({reinterpret_cast<const char*>(data), size}, "config.json", 1 << 20);
  if (!config.ok()) return 0;
  std::vector<model::Tensor> tensors(1);
  tensors[0].name = "model.embed_tokens.weight";
  tensors[0].shape = {320, 64};
  const auto architecture = model::ReadHfArchitecture(*config, tensors);
  if (architecture.ok()) CHECK(architecture->Validate().ok());
  return 0;
}
