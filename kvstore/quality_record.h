// SPDX-License-Identifier: Apache-2.0
// The quality ledger: what `penstock quality` measured of every codec on one model and KV type, and
// which of them a deployment that names a budget (`max_kl: 0.002`) may use.
//
//   ASSIGN_OR_RETURN(const QualityRecord record, ParseQualityRecord(text));
//   ASSIGN_OR_RETURN(const auto codecs, CodecsWithin(record, weights, dtype, max_kl));
//
// Plain values; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/kv_spec.h"
#include "kvstore/codecs/codec_id.h"

namespace penstock::kvstore {

inline constexpr std::size_t kQualityRecordBytesMax = std::size_t{1} << 20;

// Of attending to copies that a codec made of the prompt's blocks, against the full cache.
struct CodecQuality {
  CodecId codec{};
  std::int32_t version = 0;                                   // Of what its planes hold.
  double bits_per_value = 0;                                  // Of frames, headers included.
  double mean_kl = 0, median_kl = 0, p99_kl = 0, max_kl = 0;  // In nats.
  double top1 = 0;        // Share of positions whose likeliest token is the full cache's.
  double perplexity = 0;  // Of the scored tokens.
  double encode_gbps = 0, decode_gbps = 0;  // GB/s of uncompressed bytes, one thread.
  std::int32_t needles_correct = 0;         // Of those that the full cache gets right.
  double needle_nll = 0;                    // Mean of an answer's token, in nats.

  bool operator==(const CodecQuality&) const = default;
};

struct QualityRecord {
  std::string model;     // As in NamespaceFields.
  std::string weights;   // Digest, in hex.
  std::string numerics;  // As in NamespaceFields.
  KvDtype kv_dtype = KvDtype::kF16;
  std::string cpu;          // What the machine can execute (device/cpu_info.h); for the speeds.
  std::string text_sha256;  // Of the text, as far as it was read.
  std::int32_t block_tokens = 0;
  std::int32_t prompt_tokens = 0;  // Whose blocks went through the codec.
  std::int32_t scored_tokens = 0;  // Behind them.
  double perplexity = 0;           // Of the full cache.
  // Mean KL where every value's last bit is another: what no codec with a loss can be far below.
  // Large where activations are rounded to int8, for which any change can be the one that counts.
  double last_bit_kl = 0;
  std::int32_t needles = 0, needle_tokens = 0, needles_correct = 0;
  double needle_nll = 0;
  std::vector<CodecQuality> codecs;  // None twice.

  bool operator==(const QualityRecord&) const = default;
};

// One JSON object, which ParseQualityRecord reads as an equal record.
std::string ToJson(const QualityRecord& record);

// INVALID_ARGUMENT: no JSON, too long, of another version, or a field that is missing, of another
// type or out of its range; the message names it, its value and the limits. Codecs of other names
// than this program has, and fields that it does not know, are passed over.
absl::StatusOr<QualityRecord> ParseQualityRecord(std::string_view json);

// What the record of these weights (a digest, as in NamespaceFields) and this KV type is called.
// Records are kept beside the models.
std::string QualityRecordName(std::string_view weights, KvDtype dtype);

// The loss class of what a codec of this mean KL makes; nothing where it has none. A lossless codec
// is exact.
std::optional<LossClass> LossClassOf(CodecId codec, double mean_kl);

struct RecordedCodec {
  CodecId codec{};
  LossClass loss = LossClass::kExact;
  double mean_kl = 0;
  double bits_per_value = 0;
  double encode_gbps = 0, decode_gbps = 0;

  bool operator==(const RecordedCodec&) const = default;
};
// Codecs whose recorded mean KL is at most `kl_max`, those of fewest bits first; none beyond kl2,
// and none measured in another version than this program's. FAILED_PRECONDITION, with both values:
// a record of other weights or another KV type.
absl::StatusOr<std::vector<RecordedCodec>> CodecsWithin(const QualityRecord& record,
                                                        std::string_view weights, KvDtype dtype,
                                                        double kl_max);

}  // namespace penstock::kvstore
