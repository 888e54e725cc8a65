// SPDX-License-Identifier: Apache-2.0
// Any text as a quality record: an error, or a record that is written as one that reads the same
// and whose codecs keep to every budget.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "kvstore/quality_record.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::kvstore;
  const auto record = ParseQualityRecord({reinterpret_cast<const char*>(data), size});
  if (!record.ok()) {
    CHECK(record.status().message().find("quality record") == 0);
    return 0;
  }
  const auto again = ParseQualityRecord(ToJson(*record));
  CHECK(again.ok());
  CHECK(ToJson(*again) == ToJson(*record));
  for (const double kl_max : {0.0, 0.002, 0.05, 1.0}) {
    const auto codecs = CodecsWithin(*record, record->weights, record->kv_dtype, kl_max);
    CHECK(codecs.ok());
    for (const RecordedCodec& codec : *codecs) {
      CHECK(codec.mean_kl <= kl_max);
      CHECK(LossClassOf(codec.codec, codec.mean_kl) == codec.loss);
    }
  }
  return 0;
}
