// SPDX-License-Identifier: Apache-2.0
#include "kvstore/quality_record.h"

#include <gtest/gtest.h>

#include <functional>

#include "absl/strings/match.h"
#include "base/status.h"
#include "kvstore/codecs/codec.h"
#include "nlohmann/json.hpp"

namespace penstock::kvstore {
namespace {

using Json = nlohmann::json;

const std::string kWeights(64, 'a');

CodecQuality Quality(CodecId codec, double bits, double kl) {
  return {.codec = codec,
          .version = CodecOf(codec).version(),
          .bits_per_value = bits,
          .mean_kl = kl,
          .median_kl = kl / 2,
          .p99_kl = kl * 3,
          .max_kl = kl * 5,
          .top1 = 0.97,
          .perplexity = 11.1,
          .encode_gbps = 3.25,
          .decode_gbps = 4.5,
          .needles_correct = 3,
          .needle_nll = 0.125};
}

QualityRecord Record() {
  QualityRecord record;
  record.model = "llama/30x576";
  record.weights = kWeights;
  record.numerics = "cpu-1";
  record.kv_dtype = KvDtype::kBF16;
  record.cpu = "avx512";
  record.text_sha256 = std::string(64, '0');
  record.block_tokens = 32;
  record.prompt_tokens = 3072;
  record.scored_tokens = 512;
  record.perplexity = 11.048812345678901;
  record.last_bit_kl = 0.0025;
  record.needles = 5;
  record.needle_tokens = 1024;
  record.needles_correct = 4;
  record.needle_nll = 0.1;
  record.codecs = {Quality(CodecId::kRaw, 16.01, 0), Quality(CodecId::kInt8, 8.27, 0.0027),
                   Quality(CodecId::kKivi4, 5.02, 0.0091), Quality(CodecId::kKivi2, 3.02, 0.2),
                   Quality(CodecId::kK8v4, 6.64, 0.0051)};
  return record;
}

TEST(QualityRecordTest, ComesBackAsItWas) {
  const auto back = ParseQualityRecord(ToJson(Record()));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, Record());
}

TEST(QualityRecordTest, PassesOverWhatItDoesNotKnow) {
  Json json = Json::parse(ToJson(Record()));
  json["weather"] = {{"sun", true}};
  Json other = json["codecs"][1];
  other["codec"] = "of-next-year";
  other["mean_kl"] = "small";
  json["codecs"].push_back(other);
  const auto back = ParseQualityRecord(json.dump());
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, Record());
}

TEST(QualityRecordTest, SaysWhatIsWrong) {
  struct Case {
    std::function<void(Json&)> spoil;
    const char* says;
  };
  const Case cases[] = {
      {[](Json& j) { j = Json::array(); }, "not a JSON object"},
      {[](Json& j) { j.erase("weights"); }, "weights is missing"},
      {[](Json& j) { j["format"] = "x"; }, "format must be \"penstock quality record\", got \"x\""},
      {[](Json& j) { j["version"] = 2; }, "version must be a whole number from 1 to 1, got 2"},
      {[](Json& j) { j["weights"] = "../../x"; }, "weights must be a SHA-256 in 64 hex digits"},
      {[](Json& j) { j["weights"] = std::string(64, 'G'); }, "weights must be a SHA-256"},
      {[](Json& j) { j["model"] = ""; }, "model must be a text of 1 to 256 bytes, got \"\""},
      {[](Json& j) { j["model"] = std::string(257, 'm'); }, "model must be a text of 1 to 256"},
      {[](Json& j) { j["kv_dtype"] = "f8"; },
       "kv_dtype must be f16, bf16, f32 or int8, got \"f8\""},
      {[](Json& j) { j["block_tokens"] = 0; }, "block_tokens must be a whole number from 1 to"},
      {[](Json& j) { j["block_tokens"] = 1.5; }, "got 1.5"},
      {[](Json& j) { j["scored_tokens"] = UINT64_MAX; }, "got 18446744073709551615"},
      {[](Json& j) { j["scored_tokens"] = -1; }, "scored_tokens must be a whole number"},
      {[](Json& j) { j["perplexity"] = 0.5; }, "perplexity must be a number from 1 to"},
      {[](Json& j) { j["needles_correct"] = 6; },
       "needles_correct must be a whole number from 0 to "
       "5, got 6"},
      {[](Json& j) { j["codecs"] = 3; }, "codecs must be a list, got 3"},
      {[](Json& j) { j["codecs"][1] = 3; }, "codecs[1] must be an object, got 3"},
      {[](Json& j) { j["codecs"][1].erase("codec"); }, "codecs[1]: codec is missing"},
      {[](Json& j) { j["codecs"][1].erase("top1"); }, "codecs[1], int8: top1 is missing"},
      {[](Json& j) { j["codecs"][1]["top1"] = 1.5; },
       "codecs[1], int8: top1 must be a number from 0 to 1, got 1.5"},
      {[](Json& j) { j["codecs"][1]["mean_kl"] = nullptr; },
       "mean_kl must be a number from 0 to 1e+06, got null"},
      {[](Json& j) { j["codecs"][1]["mean_kl"] = -0.1; }, "got -0.1"},
      {[](Json& j) { j["codecs"][1]["mean_kl"] = 1; }, "mean_kl must be at most max_kl, 0.0135"},
      {[](Json& j) { j["codecs"][0]["max_kl"] = 1e-9; }, "max_kl must be 0 of a lossless codec"},
      {[](Json& j) { j["codecs"][1]["needles_correct"] = 5; },
       "needles_correct must be a whole number from 0 to 4, got 5"},
      {[](Json& j) { j["codecs"][1]["version"] = 256; }, "version must be a whole number"},
      {[](Json& j) { j["codecs"].push_back(j["codecs"][1]); },
       "codecs[5]: codec int8 is there twice"},
      {[](Json& j) {
         j["model"] = {{"a", {{"b", {{"c", {{"d", 1}}}}}}}};
       },
       "not a JSON object"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.says);
    Json json = Json::parse(ToJson(Record()));
    c.spoil(json);
    const absl::Status status = ParseQualityRecord(json.dump()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(status.message(), c.says)) << status;
  }
  for (const std::string& text :
       {std::string(), std::string("{"), std::string(kQualityRecordBytesMax + 1, ' '),
        std::string(100000, '['), std::string("{\"perplexity\": 1e999}")}) {
    EXPECT_EQ(ParseQualityRecord(text).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(QualityRecordTest, CodecsWithinABudget) {
  const auto names = [](double kl_max) {
    const auto codecs = CodecsWithin(Record(), kWeights, KvDtype::kBF16, kl_max);
    EXPECT_TRUE(codecs.ok()) << codecs.status();
    std::string text;
    for (const RecordedCodec& c : *codecs) {
      absl::StrAppend(&text, ToAbsl(ToString(c.codec)), ":", ToAbsl(ToString(c.loss)), " ");
    }
    return text;
  };
  EXPECT_EQ(names(0), "raw:exact ");
  EXPECT_EQ(names(0.0026999), "raw:exact ");
  EXPECT_EQ(names(0.0027), "int8:kl3 raw:exact ");
  EXPECT_EQ(names(0.006), "k8v4:kl2 int8:kl3 raw:exact ");
  EXPECT_EQ(names(0.05), "kivi4:kl2 k8v4:kl2 int8:kl3 raw:exact ");
  EXPECT_EQ(names(10), "kivi4:kl2 k8v4:kl2 int8:kl3 raw:exact ");  // None beyond kl2.
}

TEST(QualityRecordTest, OtherVersionsAreNotProven) {
  QualityRecord record = Record();
  record.codecs[1].version = 200;
  const auto codecs = CodecsWithin(record, kWeights, KvDtype::kBF16, 0.004);
  ASSERT_TRUE(codecs.ok());
  ASSERT_EQ(codecs->size(), 1u);
  EXPECT_EQ((*codecs)[0].codec, CodecId::kRaw);
}

TEST(QualityRecordTest, IsOfOneNamespace) {
  const std::string other(64, 'b');
  const absl::Status weights = CodecsWithin(Record(), other, KvDtype::kBF16, 1).status();
  EXPECT_EQ(weights.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(weights.message(), kWeights)) << weights;
  EXPECT_TRUE(absl::StrContains(weights.message(), other)) << weights;
  const absl::Status dtype = CodecsWithin(Record(), kWeights, KvDtype::kF16, 1).status();
  EXPECT_EQ(dtype.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(dtype.message(), "of bf16 KV, wanted one of f16")) << dtype;
}

TEST(QualityRecordTest, ClassesAreThoseOfTheLedger) {
  EXPECT_EQ(LossClassOf(CodecId::kPlanes, 0), LossClass::kExact);
  EXPECT_EQ(LossClassOf(CodecId::kInt8, 0), LossClass::kKl3);
  EXPECT_EQ(LossClassOf(CodecId::kInt8, 0.005), LossClass::kKl3);
  EXPECT_EQ(LossClassOf(CodecId::kInt8, 0.0051), LossClass::kKl2);
  EXPECT_EQ(LossClassOf(CodecId::kInt8, 0.05), LossClass::kKl2);
  EXPECT_EQ(LossClassOf(CodecId::kInt8, 0.051), std::nullopt);
  EXPECT_EQ(QualityRecordName(kWeights, KvDtype::kF16), "quality-aaaaaaaaaaaaaaaa-f16.json");
}

}  // namespace
}  // namespace penstock::kvstore
