// SPDX-License-Identifier: Apache-2.0
#include "kvstore/quality_record.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/kl_bounds.h"
#include "base/status.h"
#include "kvstore/codecs/codec.h"
#include "nlohmann/json.hpp"

namespace penstock::kvstore {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kFormat = "penstock quality record";
constexpr std::int32_t kVersion = 1;
constexpr int kDepthMax = 4;
constexpr std::int32_t kCountMax = 1 << 24;
constexpr double kNatsMax = 1e6;
constexpr std::size_t kWordBytesMax = 256;
constexpr std::size_t kBriefBytesMax = 40;

std::string Brief(const Json& value) {
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() <= kBriefBytesMax) return text;
  return absl::StrCat(text.substr(0, kBriefBytesMax), "...");
}

// Reads the members of one object; keeps the first error.
class Fields {
 public:
  Fields(const Json& object, std::string where, absl::Status& status)
      : object_(object), where_(std::move(where)), status_(status) {}

  std::string Word(const char* key) {
    const Json* const value = Find(key);
    if (value == nullptr) return {};
    if (!value->is_string() || value->get_ref<const std::string&>().empty() ||
        value->get_ref<const std::string&>().size() > kWordBytesMax) {
      Fail(key, absl::StrCat("must be a text of 1 to ", kWordBytesMax, " bytes"), *value);
      return {};
    }
    return value->get<std::string>();
  }
  double Number(const char* key, double least, double most) {
    const Json* const value = Find(key);
    if (value == nullptr) return least;
    const double number = value->is_number() ? value->get<double>() : std::nan("");
    if (!(number >= least && number <= most)) {
      Fail(key, absl::StrFormat("must be a number from %g to %g", least, most), *value);
      return least;
    }
    return number;
  }
  std::int32_t Count(const char* key, std::int32_t least, std::int32_t most) {
    const Json* const value = Find(key);
    if (value == nullptr) return least;
    // Of any sign and size: what does not fit is out of range as a double, too.
    const double number = value->is_number_integer() ? value->get<double>() : std::nan("");
    if (!(number >= least && number <= most)) {
      Fail(key, absl::StrCat("must be a whole number from ", least, " to ", most), *value);
      return least;
    }
    return static_cast<std::int32_t>(number);
  }
  const Json* Find(const char* key) {
    const auto found = object_.find(key);
    if (found != object_.end()) return &*found;
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", key, " is missing"));
    }
    return nullptr;
  }
  void Fail(const char* key, std::string_view want, const Json& got) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat(where_, ": ", key, " ", ToAbsl(want), ", got ", Brief(got)));
  }

 private:
  const Json& object_;
  const std::string where_;
  absl::Status& status_;
};

// A digest, which also becomes part of a file's name.
bool IsDigest(const std::string& text) {
  return text.size() == 64 && std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

std::string Digest(Fields& fields, const char* key) {
  const std::string text = fields.Word(key);
  if (!IsDigest(text)) fields.Fail(key, "must be a SHA-256 in 64 hex digits", text);
  return text;
}

CodecQuality ReadCodec(CodecId codec, Fields& fields, std::int32_t needles_correct) {
  CodecQuality q;
  q.codec = codec;
  q.version = fields.Count("version", 1, 255);
  q.bits_per_value = fields.Number("bits_per_value", 1e-3, 1e3);
  q.mean_kl = fields.Number("mean_kl", 0, kNatsMax);
  q.median_kl = fields.Number("median_kl", 0, kNatsMax);
  q.p99_kl = fields.Number("p99_kl", 0, kNatsMax);
  q.max_kl = fields.Number("max_kl", 0, kNatsMax);
  q.top1 = fields.Number("top1", 0, 1);
  q.perplexity = fields.Number("perplexity", 1, HUGE_VAL);
  q.encode_gbps = fields.Number("encode_gbps", 0, kNatsMax);
  q.decode_gbps = fields.Number("decode_gbps", 0, kNatsMax);
  q.needles_correct = fields.Count("needles_correct", 0, needles_correct);
  q.needle_nll = fields.Number("needle_nll", 0, kNatsMax);
  // The mean of numbers none of which is above max_kl, but for what rounding adds.
  if (q.mean_kl > q.max_kl * (1 + 1e-9)) {
    fields.Fail("mean_kl", absl::StrCat("must be at most max_kl, ", q.max_kl), q.mean_kl);
  }
  if (IsLossless(codec) && q.max_kl != 0) {
    fields.Fail("max_kl", "must be 0 of a lossless codec", q.max_kl);
  }
  return q;
}

absl::Status ReadCodecs(const Json& json, QualityRecord& record) {
  absl::Status status;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const std::string at = absl::StrCat("quality record: codecs[", i, "]");
    if (!json[i].is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat(at, " must be an object, got ", Brief(json[i])));
    }
    Fields name_of(json[i], at, status);
    const std::string name = name_of.Word("codec");
    RETURN_IF_ERROR(status);
    const absl::StatusOr<CodecId> codec = ParseCodecId(name);
    if (!codec.ok()) continue;
    for (const CodecQuality& other : record.codecs) {
      if (other.codec != *codec) continue;
      return absl::InvalidArgumentError(absl::StrCat(at, ": codec ", name, " is there twice"));
    }
    Fields fields(json[i], absl::StrCat(at, ", ", name), status);
    record.codecs.push_back(ReadCodec(*codec, fields, record.needles_correct));
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

// Null unless it is JSON, and no deeper than records are.
Json ParseShallow(std::string_view text) {
  bool shallow = true;
  const auto watch = [&](int depth, Json::parse_event_t, const Json&) {
    shallow = shallow && depth <= kDepthMax;
    return shallow;  // What is too deep is not kept.
  };
  Json json = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (!shallow || json.is_discarded()) return nullptr;
  return json;
}

}  // namespace

std::string ToJson(const QualityRecord& record) {
  nlohmann::ordered_json json = {{"format", kFormat},
                                 {"version", kVersion},
                                 {"model", record.model},
                                 {"weights", record.weights},
                                 {"numerics", record.numerics},
                                 {"kv_dtype", ToString(record.kv_dtype)},
                                 {"cpu", record.cpu},
                                 {"text_sha256", record.text_sha256},
                                 {"block_tokens", record.block_tokens},
                                 {"prompt_tokens", record.prompt_tokens},
                                 {"scored_tokens", record.scored_tokens},
                                 {"perplexity", record.perplexity},
                                 {"last_bit_kl", record.last_bit_kl},
                                 {"needles", record.needles},
                                 {"needle_tokens", record.needle_tokens},
                                 {"needles_correct", record.needles_correct},
                                 {"needle_nll", record.needle_nll},
                                 {"codecs", nlohmann::ordered_json::array()}};
  for (const CodecQuality& q : record.codecs) {
    json["codecs"].push_back({{"codec", ToString(q.codec)},
                              {"version", q.version},
                              {"bits_per_value", q.bits_per_value},
                              {"mean_kl", q.mean_kl},
                              {"median_kl", q.median_kl},
                              {"p99_kl", q.p99_kl},
                              {"max_kl", q.max_kl},
                              {"top1", q.top1},
                              {"perplexity", q.perplexity},
                              {"encode_gbps", q.encode_gbps},
                              {"decode_gbps", q.decode_gbps},
                              {"needles_correct", q.needles_correct},
                              {"needle_nll", q.needle_nll}});
  }
  return json.dump(1, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

absl::StatusOr<QualityRecord> ParseQualityRecord(std::string_view text) {
  if (text.size() > kQualityRecordBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "quality record: at most ", kQualityRecordBytesMax, " bytes, got ", text.size()));
  }
  const Json json = ParseShallow(text);
  if (!json.is_object()) {
    return absl::InvalidArgumentError("quality record: not a JSON object of one");
  }
  absl::Status status;
  Fields fields(json, "quality record", status);
  if (fields.Word("format") != kFormat && status.ok()) {
    fields.Fail("format", absl::StrCat("must be \"", ToAbsl(kFormat), "\""), json["format"]);
  }
  fields.Count("version", kVersion, kVersion);
  QualityRecord record;
  record.model = fields.Word("model");
  record.weights = Digest(fields, "weights");
  record.numerics = fields.Word("numerics");
  const absl::StatusOr<KvDtype> dtype = ParseKvDtype(fields.Word("kv_dtype"));
  if (status.ok() && !dtype.ok()) {
    fields.Fail("kv_dtype", "must be f16, bf16, f32 or int8", json["kv_dtype"]);
  }
  record.kv_dtype = dtype.value_or(KvDtype::kF16);
  record.cpu = fields.Word("cpu");
  record.text_sha256 = Digest(fields, "text_sha256");
  record.block_tokens = fields.Count("block_tokens", 1, kCountMax);
  record.prompt_tokens = fields.Count("prompt_tokens", 1, kCountMax);
  record.scored_tokens = fields.Count("scored_tokens", 1, kCountMax);
  record.perplexity = fields.Number("perplexity", 1, HUGE_VAL);
  record.last_bit_kl = fields.Number("last_bit_kl", 0, kNatsMax);
  record.needles = fields.Count("needles", 0, kCountMax);
  record.needle_tokens = fields.Count("needle_tokens", 0, kCountMax);
  record.needles_correct = fields.Count("needles_correct", 0, record.needles);
  record.needle_nll = fields.Number("needle_nll", 0, kNatsMax);
  const Json* const codecs = fields.Find("codecs");
  if (codecs != nullptr && !codecs->is_array()) fields.Fail("codecs", "must be a list", *codecs);
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(ReadCodecs(*codecs, record));
  return record;
}

std::string QualityRecordName(std::string_view weights, KvDtype dtype) {
  return absl::StrCat("quality-", ToAbsl(weights.substr(0, 16)), "-", ToAbsl(ToString(dtype)),
                      ".json");
}

std::optional<LossClass> LossClassOf(CodecId codec, double mean_kl) {
  if (IsLossless(codec)) return LossClass::kExact;
  if (mean_kl <= kKl3Max) return LossClass::kKl3;
  if (mean_kl <= kKl2Max) return LossClass::kKl2;
  return std::nullopt;
}

absl::StatusOr<std::vector<RecordedCodec>> CodecsWithin(const QualityRecord& record,
                                                        std::string_view weights, KvDtype dtype,
                                                        double kl_max) {
  if (record.weights != weights) {
    return absl::FailedPreconditionError(absl::StrCat(
        "a quality record of weights ", record.weights, ", wanted one of ", ToAbsl(weights)));
  }
  if (record.kv_dtype != dtype) {
    return absl::FailedPreconditionError(
        absl::StrCat("a quality record of ", ToAbsl(ToString(record.kv_dtype)),
                     " KV, wanted one of ", ToAbsl(ToString(dtype))));
  }
  std::vector<RecordedCodec> within;
  for (const CodecQuality& q : record.codecs) {
    const std::optional<LossClass> loss = LossClassOf(q.codec, q.mean_kl);
    if (!loss.has_value() || !(q.mean_kl <= kl_max)) continue;
    if (q.version != CodecOf(q.codec).version()) continue;
    within.push_back({.codec = q.codec,
                      .loss = *loss,
                      .mean_kl = q.mean_kl,
                      .bits_per_value = q.bits_per_value,
                      .encode_gbps = q.encode_gbps,
                      .decode_gbps = q.decode_gbps});
  }
  std::ranges::stable_sort(within, {}, &RecordedCodec::bits_per_value);
  return within;
}

}  // namespace penstock::kvstore
