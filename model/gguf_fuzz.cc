// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF file: an error, or a model whose every tensor can be read.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "model/gguf_model.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock;
  const auto model =
      model::ReadGgufModel(std::span(reinterpret_cast<const std::byte*>(data), size));
  if (!model.ok()) return 0;
  CHECK(model->architecture.Validate().ok());
  for (const model::Tensor& tensor : model->all_tensors) {
    std::vector<float> row(static_cast<std::size_t>(tensor.cols()));
    kernels::DequantizeRow(tensor.format, tensor.bytes.data(), row);
    CHECK_EQ(tensor.bytes.size() % kernels::BytesOf(tensor.format, 1, tensor.cols()), 0u);
  }
  return 0;
}
