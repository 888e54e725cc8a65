// SPDX-License-Identifier: Apache-2.0
// Any text as tokenizer.json: an error, or a vocabulary that is consistent with itself.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "model/hf_model.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock;
  constexpr std::int32_t kVocab = 1024;
  model::HfTexts texts;
  texts.tokenizer.assign(reinterpret_cast<const char*>(data), size);
  const auto vocabulary = model::ReadHfVocabulary(texts, model::Json::object(), kVocab);
  if (!vocabulary.ok()) return 0;
  CHECK_LE(vocabulary->pieces.size(), static_cast<std::size_t>(kVocab));
  CHECK_EQ(vocabulary->pieces.size(), vocabulary->kinds.size());
  return 0;
}
