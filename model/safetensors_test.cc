// SPDX-License-Identifier: Apache-2.0
#include "model/safetensors.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/match.h"
#include "model/file_testing.h"

namespace penstock::model {
namespace {

using testing::AsBytes;
using testing::Bytes;
using testing::MakeSafetensors;

constexpr std::string_view kGood = R"({"__metadata__":{"format":"pt"},)"
                                   R"("b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
                                   R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                   R"("c":{"dtype":"F16","shape":[],"data_offsets":[16,18]}}  )";

TEST(SafetensorsTest, ReadsAFile) {
  std::string file = MakeSafetensors(kGood, 18);
  file[file.size() - 18] = 7;
  const auto tensors = ParseSafetensors(AsBytes(file));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  const Tensor& a = (*tensors)[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.format, kernels::WeightFormat::kF32);
  EXPECT_EQ(a.bytes.size(), 4u);
  EXPECT_EQ(a.bytes[0], std::byte{7});
  const Tensor& b = (*tensors)[1];
  EXPECT_EQ(b.format, kernels::WeightFormat::kBF16);
  EXPECT_EQ(b.rows(), 2);
  EXPECT_EQ(b.cols(), 3);
  EXPECT_EQ((*tensors)[2].cols(), 1);
}

TEST(SafetensorsTest, RefusesHostileFiles) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto kLoss = absl::StatusCode::kDataLoss;
  const auto one = [](std::string_view info, std::size_t data = 4) {
    return MakeSafetensors("{\"t\":" + std::string(info) + "}", data);
  };
  struct Case {
    const char* name;
    std::string file;
    absl::StatusCode code;
    const char* words;
  };
  for (const Case& c : {
           Case{"empty", "", kLoss, "it has 0 bytes"},
           Case{"header length", Bytes().Put<std::uint64_t>(1 << 30).data(), kInvalid,
                "header must be at most 16777216 bytes long, got 1073741824"},
           Case{"header length overflows", Bytes().Put(~std::uint64_t{0}).data(), kInvalid,
                "got 18446744073709551615"},
           Case{"header past the end", Bytes().Put<std::uint64_t>(100).Raw("{}").data(), kLoss,
                "the header takes 100 bytes, 2 are left"},
           Case{"no JSON", MakeSafetensors("{\"t\":", 0), kInvalid, "is not valid JSON"},
           Case{"no object", MakeSafetensors("[]", 0), kInvalid, "must be a JSON object"},
           Case{"deep", MakeSafetensors(std::string(100000, '['), 0), kInvalid,
                "nests deeper than 64"},
           Case{"invalid UTF-8", MakeSafetensors("{\"\xFF\":1}", 0), kInvalid, "is not valid JSON"},
           Case{"duplicate",
                MakeSafetensors(R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                R"("t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                                4),
                kInvalid, "has the key \"t\" twice"},
           Case{"no dtype", one(R"({"shape":[1],"data_offsets":[0,4]})"), kInvalid,
                "dtype is missing"},
           Case{"not even an object", one("7"), kInvalid, "dtype is missing"},
           Case{"dtype", one(R"({"dtype":"I64","shape":[1],"data_offsets":[0,4]})"), kInvalid,
                "tensor t: dtype must be F32, F16 or BF16, got \"I64\""},
           Case{"no shape", one(R"({"dtype":"F32","data_offsets":[0,4]})"), kInvalid,
                "tensor t: shape must be an array"},
           Case{"many sizes",
                one(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]})"),
                kInvalid, "at most 8 sizes"},
           Case{"negative size", one(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"),
                kInvalid, "size -1 in its shape must be from 1"},
           Case{"size that overflows",
                one(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})"),
                kInvalid, "size 4294967296 in its shape must be from 1 to 65536"},
           Case{"float size", one(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"),
                kInvalid, "size 1.0 in its shape"},
           Case{"no offsets", one(R"({"dtype":"F32","shape":[1]})"), kInvalid,
                "data_offsets must be two positive integers"},
           Case{"three offsets", one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})"),
                kInvalid, "data_offsets must be two"},
           Case{"backwards", one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), kInvalid,
                "must be the shape's 4 bytes apart"},
           Case{"too many bytes", one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})", 8),
                kInvalid, "must be the shape's 4 bytes apart"},
           Case{"truncated", one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})", 7), kLoss,
                "tensor t ends at 8, the data has 7 bytes"},
           Case{"trailing", one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})", 5), kInvalid,
                "data has 5 bytes, its tensors take 4"},
           Case{"hole", one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8), kInvalid,
                "begin at 4, the tensor before ends at 0"},
           Case{"overlap",
                MakeSafetensors(R"({"s":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                R"("t":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                                12),
                kInvalid, "begin at 4, the tensor before ends at 8"},
       }) {
    SCOPED_TRACE(c.name);
    const absl::Status status = ParseSafetensors(AsBytes(c.file)).status();
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), c.words)) << status << "\nwanted: " << c.words;
  }
}

TEST(SafetensorsTest, RefusesEveryTruncation) {
  const std::string file = MakeSafetensors(kGood, 18);
  for (std::size_t n = 0; n < file.size(); ++n) {
    const std::vector<char> part(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n));
    const auto got = ParseSafetensors(AsBytes({part.data(), part.size()}));
    EXPECT_EQ(got.status().code(), absl::StatusCode::kDataLoss) << n;
  }
}

TEST(SafetensorsTest, SurvivesFlippedBytes) {
  const std::string file = MakeSafetensors(kGood, 18);
  int refused = 0;
  for (std::uint32_t seed = 0; seed < 20000; ++seed) {
    std::mt19937 random(seed);
    std::string bad = file;
    for (std::uint32_t i = 0; i < 1 + seed % 3; ++i) {
      bad[random() % bad.size()] = static_cast<char>(random());
    }
    const auto got = ParseSafetensors(AsBytes(bad));
    if (!got.ok()) {
      ++refused;
      continue;
    }
    for (const Tensor& t : *got) {
      EXPECT_GE(t.bytes.data(), AsBytes(bad).data()) << "seed=" << seed;
      EXPECT_LE(t.bytes.data() + t.bytes.size(), AsBytes(bad).data() + bad.size())
          << "seed=" << seed;
    }
  }
  EXPECT_GT(refused, 10000);
}

TEST(SafetensorsTest, ShardIndex) {
  const auto shards = ParseShardIndex(
      R"({"metadata":{"total_size":8},"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}})");
  ASSERT_TRUE(shards.ok()) << shards.status();
  EXPECT_EQ(*shards, (std::vector<std::string>{"m-1.safetensors", "m-2.safetensors"}));
  for (const char* bad :
       {R"({})", R"({"weight_map":{}})", R"({"weight_map":[]})", R"({"weight_map":{"a":7}})",
        R"({"weight_map":{"a":""}})", R"({"weight_map":{"a":"../x"}})",
        R"({"weight_map":{"a":"/etc/passwd"}})", R"({"weight_map":{"a":"x\u0000y"}})",
        R"({"weight_map":{"a":"."}})", R"({"weight_map":{"a":"x","a":"y"}})"}) {
    EXPECT_EQ(ParseShardIndex(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace penstock::model
