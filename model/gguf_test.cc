// SPDX-License-Identifier: Apache-2.0
#include "model/gguf.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/match.h"
#include "base/status.h"
#include "model/file_testing.h"
#include "model/gguf_model.h"

namespace penstock::model {
namespace {

using testing::AsBytes;
using testing::Bytes;
using testing::GgufWriter;
using testing::MakeTinyGguf;

void ExpectError(const absl::Status& status, absl::StatusCode code, const char* words) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), words)) << status << "\nwanted: " << words;
}

TEST(GgufTest, ReadsEveryType) {
  GgufWriter w;
  w.Meta("u8", 0, "\xFF")
      .Meta("i8", 1, "\xFF")
      .Meta("u16", 2, "\xFF\xFF")
      .Meta("i16", 3, "\xFF\xFF");
  w.U32("u32", 7).Meta("i32", 5, Bytes().Put<std::int32_t>(-7).data()).F32("f32", 1.5f);
  w.Bool("bool", true).Str("string", "text").Meta("u64", 10, Bytes().Put<std::uint64_t>(9).data());
  w.Meta("i64", 11, Bytes().Put<std::int64_t>(-9).data());
  w.Meta("f64", 12, Bytes().Put(2.5).data());
  w.Strs("strings", {"a", "", "bc"}).Array<std::uint16_t>("ints", 2, {1, 65535});
  w.Array<std::uint8_t>("bools", 7, {1, 0}).Array<float>("floats", 6, {1, 2});
  // [[1], [2, 3]]
  w.Meta("nested", 9,
         Bytes()
             .Put<std::uint32_t>(9)
             .Put<std::uint64_t>(2)
             .Put<std::uint32_t>(0)
             .Put<std::uint64_t>(1)
             .Raw("\1")
             .Put<std::uint32_t>(0)
             .Put<std::uint64_t>(2)
             .Raw("\2\3")
             .data());
  for (const std::uint32_t version : {2u, 3u}) {
    const std::string file = w.Write(version);
    const auto gguf = Gguf::Parse(AsBytes(file));
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    EXPECT_EQ(gguf->version(), version);
    EXPECT_EQ(*gguf->GetInt("u8"), 255);
    EXPECT_EQ(*gguf->GetInt("i8"), -1);
    EXPECT_EQ(*gguf->GetInt("u16"), 65535);
    EXPECT_EQ(*gguf->GetInt("i16"), -1);
    EXPECT_EQ(*gguf->GetInt("u32"), 7);
    EXPECT_EQ(*gguf->GetInt("i32"), -7);
    EXPECT_EQ(*gguf->GetInt("u64"), 9);
    EXPECT_EQ(*gguf->GetInt("i64"), -9);
    EXPECT_EQ(*gguf->GetFloat("f32"), 1.5f);
    EXPECT_EQ(*gguf->GetFloat("f64"), 2.5f);
    EXPECT_TRUE(*gguf->GetBool("bool"));
    EXPECT_EQ(*gguf->GetString("string"), "text");
    EXPECT_EQ(*gguf->GetStrings("strings"), (std::vector<std::string>{"a", "", "bc"}));
    EXPECT_EQ(*gguf->GetInts("ints"), (std::vector<std::int64_t>{1, 65535}));
    EXPECT_EQ(*gguf->GetInts("bools"), (std::vector<std::int64_t>{1, 0}));
    EXPECT_EQ(*gguf->GetFloats("floats"), (std::vector<float>{1, 2}));
    EXPECT_EQ(gguf->Find("nested")->count, 2u);
    EXPECT_EQ(gguf->Find("nested")->bytes.size(), 27u);
    EXPECT_EQ(*gguf->GetInt("none", 5), 5);
    EXPECT_TRUE(gguf->GetStrings("none")->empty());
  }
}

TEST(GgufTest, GettersRefuse) {
  GgufWriter w;
  w.Str("s", "x").U32("n", 0xFFFFFFFF).F32("inf", 1.0f / 0.0f).Array<float>("f", 6, {1});
  w.Meta("u64", 10, Bytes().Put<std::uint64_t>(~std::uint64_t{0}).data()).Bool("b", true);
  const std::string file = w.Write();
  const auto g = Gguf::Parse(AsBytes(file));
  ASSERT_TRUE(g.ok()) << g.status();
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(g->GetInt("s").status(), kInvalid, "metadata s must be an integer, got string");
  ExpectError(g->GetInt("b").status(), kInvalid, "must be an integer, got bool");
  ExpectError(g->GetInt("n").status(), kInvalid, "must be at most 2147483647, got 4294967295");
  ExpectError(g->GetInt("u64").status(), kInvalid, "got 18446744073709551615");
  ExpectError(g->GetInt("none").status(), kInvalid, "metadata none is missing");
  ExpectError(g->GetInt("f").status(), kInvalid, "must be an integer, got an array of 1 f32");
  ExpectError(g->GetFloat("inf").status(), kInvalid, "must be finite");
  ExpectError(g->GetFloat("n").status(), kInvalid, "must be a float, got u32");
  ExpectError(g->GetBool("n").status(), kInvalid, "must be a bool");
  ExpectError(g->GetString("n").status(), kInvalid, "must be a string");
  ExpectError(g->GetInts("f").status(), kInvalid, "must be an array of integers");
  ExpectError(g->GetFloats("s").status(), kInvalid, "must be an array of f32");
  ExpectError(g->GetStrings("f").status(), kInvalid, "must be an array of strings");
}

std::string Header(std::uint64_t tensors, std::uint64_t metadata) {
  return Bytes().Raw("GGUF").Put<std::uint32_t>(3).Put(tensors).Put(metadata).data();
}

TEST(GgufTest, RefusesHostileFiles) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto kLoss = absl::StatusCode::kDataLoss;
  const std::uint64_t huge = ~std::uint64_t{0};
  const std::string pad(4096, '\0');
  struct Case {
    const char* name;
    std::string file;
    absl::StatusCode code;
    const char* words;
  };
  const auto deep = [] {
    Bytes b;
    for (int i = 0; i < 6; ++i) b.Put<std::uint32_t>(9).Put<std::uint64_t>(1);
    return b.data();
  };
  for (const Case& c : {
           Case{"magic", "GGML" + pad, kInvalid, "does not begin with"},
           Case{"short", "GG", kLoss, "magic at byte 0 needs 4 bytes, 2 are left"},
           Case{"version", Bytes().Raw("GGUF").Put<std::uint32_t>(1).data() + pad, kInvalid,
                "version must be 2 or 3 (little-endian), got 1"},
           Case{"big endian", std::string("GGUF\0\0\0\3", 8) + pad, kInvalid, "got 50331648"},
           Case{"tensor count", Header(huge, 0) + pad, kInvalid, "tensor count must be at most"},
           Case{"tensors past the end", Header(1000, 0), kLoss, "tensor count is 1000"},
           Case{"metadata count", Header(0, huge) + pad, kInvalid,
                "metadata count must be at most"},
           Case{"metadata past the end", Header(0, 1000), kLoss, "metadata count is 1000"},
           Case{"key length", Header(0, 1) + Bytes().Put(huge).data() + pad, kInvalid,
                "metadata key at byte 32 must be at most 65535 bytes long"},
           Case{"type", GgufWriter().Meta("k", 13, pad).Write(), kInvalid,
                "metadata k has type 13, the largest known is 12"},
           Case{"element type", GgufWriter().Meta("k", 9, Bytes().Put(99u).Raw(pad).data()).Write(),
                kInvalid, "metadata k has type 99"},
           Case{"string length",
                GgufWriter().Meta("k", 8, Bytes().Put(huge).Raw(pad).data()).Write(), kLoss,
                "k at byte"},
           Case{"array count",
                GgufWriter().Meta("k", 9, Bytes().Put(10u).Put(huge / 8).Raw(pad).data()).Write(),
                kLoss, "metadata k has 2305843009213693951 values"},
           Case{"strings count",
                GgufWriter().Meta("k", 9, Bytes().Put(8u).Put(huge).Raw(pad).data()).Write(), kLoss,
                "GGUF is truncated"},
           Case{"depth", GgufWriter().Meta("k", 9, deep() + pad).Write(), kInvalid,
                "nests arrays deeper than 4"},
           Case{"duplicate key", GgufWriter().U32("k", 1).U32("k", 1).Write(), kInvalid,
                "metadata k is given twice"},
           Case{"alignment 0", GgufWriter().U32("general.alignment", 0).Write(), kInvalid,
                "power of two up to 1048576, got 0"},
           Case{"alignment 48", GgufWriter().U32("general.alignment", 48).Write(), kInvalid,
                "got 48"},
           Case{"alignment type", GgufWriter().Str("general.alignment", "32").Write(), kInvalid,
                "must be an integer, got string"},
           Case{"duplicate tensor", GgufWriter().F32Tensor("t", {1}).F32Tensor("t", {1}).Write(),
                kInvalid, "tensor t is given twice"},
           Case{"no dimensions", GgufWriter().TensorAt("t", {}, 0, 0).Write() + pad, kInvalid,
                "must have 1 to 4 dimensions, got 0"},
           Case{"five dimensions", GgufWriter().TensorAt("t", {1, 1, 1, 1, 1}, 0, 0).Write(),
                kInvalid, "must have 1 to 4 dimensions, got 5"},
           Case{"empty dimension", GgufWriter().TensorAt("t", {4, 0}, 0, 0).Write(), kInvalid,
                "tensor t: dimension 1 is 0"},
           Case{"shape overflows",
                GgufWriter()
                    .TensorAt("t", {std::uint64_t{1} << 33, std::uint64_t{1} << 33}, 0, 0)
                    .Write(),
                kInvalid, "dimension 1 is 8589934592, must be from 1 to 32768"},
           Case{"tensor type", GgufWriter().TensorAt("t", {32}, 20, 0).Write(), kInvalid,
                "tensor t has type 20 (iq4_nl), which is not supported"},
           Case{"unknown tensor type", GgufWriter().TensorAt("t", {32}, 9999, 0).Write(), kInvalid,
                "has type 9999 (unknown)"},
           Case{"part of a block", GgufWriter().TensorAt("t", {33}, 2, 0).Write(), kInvalid,
                "rows of 33 weights do not divide into blocks of 32 (q4_0)"},
           Case{"misaligned", GgufWriter().TensorAt("t", {1}, 0, 4).Write() + pad, kInvalid,
                "offset 4 is not a multiple of the alignment 32"},
           Case{"offset past the end", GgufWriter().TensorAt("t", {1}, 0, 1 << 20).Write(), kLoss,
                "takes 4 bytes at offset 1048576"},
           Case{"offset overflows", GgufWriter().TensorAt("t", {1}, 0, huge - 31).Write() + pad,
                kLoss, "at offset 18446744073709551584"},
           Case{"tensor past the end", GgufWriter().TensorAt("t", {2000}, 0, 0).Write() + pad,
                kLoss, "takes 8000 bytes"},
           Case{"overlap", GgufWriter().F32Tensor("a", {64}).TensorAt("b", {1}, 0, 32).Write(),
                kInvalid, "tensors a and b overlap"},
           Case{"tensor name", GgufWriter().F32Tensor(std::string(300, 'x'), {1}).Write(), kInvalid,
                "must be at most 256 bytes long, got 300"},
       }) {
    SCOPED_TRACE(c.name);
    ExpectError(Gguf::Parse(AsBytes(c.file)).status(), c.code, c.words);
  }
}

// Every prefix of a valid file is an error; the whole is not.
TEST(GgufTest, RefusesEveryTruncation) {
  const std::string file = MakeTinyGguf({.layers = 1}).Write();
  ASSERT_TRUE(ReadGgufModel(AsBytes(file)).ok()) << ReadGgufModel(AsBytes(file)).status();
  for (std::size_t n = 0; n < file.size(); ++n) {
    // Its own allocation, so that a sanitizer sees the first byte past the end.
    const std::vector<char> part(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n));
    const auto got = ReadGgufModel(AsBytes({part.data(), part.size()}));
    // The last tensor is padded: without its padding the file is still whole.
    if (n + 32 > file.size() && got.ok()) continue;
    ASSERT_EQ(got.status().code(), absl::StatusCode::kDataLoss) << n << ": " << got.status();
  }
}

TEST(GgufTest, SurvivesFlippedBytes) {
  const std::string file =
      MakeTinyGguf({.family = "gemma3", .layers = 1, .sentence_piece = true}).Write();
  ASSERT_TRUE(ReadGgufModel(AsBytes(file)).ok());
  int refused = 0;
  for (std::uint32_t seed = 0; seed < 20000; ++seed) {
    std::mt19937 random(seed);
    std::string bad = file;
    const std::size_t header = 2500;  // Flips in the weights change nothing.
    for (std::uint32_t i = 0; i < 1 + seed % 3; ++i) {
      bad[random() % header] = static_cast<char>(random());
    }
    const auto got = ReadGgufModel(AsBytes(bad));
    if (got.ok()) {
      EXPECT_TRUE(got->architecture.Validate().ok()) << "seed=" << seed;
    } else {
      ++refused;
    }
  }
  EXPECT_GT(refused, 10000);
}

}  // namespace
}  // namespace penstock::model
