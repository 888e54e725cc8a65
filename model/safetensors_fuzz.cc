// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file and as a shard index: an error, or tensors inside the bytes.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/check.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock;
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  if (const auto tensors = model::ParseSafetensors(bytes); tensors.ok()) {
    for (const model::Tensor& tensor : *tensors) {
      CHECK(tensor.bytes.data() >= bytes.data());
      CHECK(tensor.bytes.data() + tensor.bytes.size() <= bytes.data() + bytes.size());
    }
  }
  const auto shards = model::ParseShardIndex({reinterpret_cast<const char*>(data), size});
  if (shards.ok()) {
    for (const std::string& name : *shards) CHECK(name.find('/') == std::string::npos);
  }
  return 0;
}
