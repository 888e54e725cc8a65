// SPDX-License-Identifier: Apache-2.0
#include "tests/quantized_model.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/float16.h"
#include "base/status.h"
#include "kernels/weight_format.h"
#include "model/file_testing.h"

namespace penstock::tests {
namespace {

using kernels::WeightFormat;

constexpr std::uint64_t kModel = 256;  // A K format's super-block.
// No number of shards divides it. Of 8 shards some have 32 rows, others one more: one more group
// of packed rows.
constexpr std::uint64_t kVocab = 8 * 32 + 3;

// A format as GGUF numbers it, and where in a block its f16 scales are.
struct Format {
  WeightFormat format;
  std::uint32_t gguf;
  std::vector<std::size_t> scales;
};
const std::array<Format, 10> kFormats = {{{WeightFormat::kQ4_0, 2, {0}},
                                          {WeightFormat::kQ4_1, 3, {0, 2}},
                                          {WeightFormat::kQ5_0, 6, {0}},
                                          {WeightFormat::kQ5_1, 7, {0, 2}},
                                          {WeightFormat::kQ8_0, 8, {0}},
                                          {WeightFormat::kQ2_K, 10, {80, 82}},
                                          {WeightFormat::kQ3_K, 11, {108}},
                                          {WeightFormat::kQ4_K, 12, {0, 2}},
                                          {WeightFormat::kQ5_K, 13, {0, 2}},
                                          {WeightFormat::kQ6_K, 14, {208}}}};

// What follows the header, tensor by tensor.
class Contents {
 public:
  explicit Contents(std::uint32_t seed) : random_(seed) {}

  void Matrix(std::string_view name, std::uint64_t cols, std::uint64_t rows, const Format& format,
              model::testing::GgufWriter* writer) {
    const kernels::WeightFormatInfo& info = kernels::Info(format.format);
    const std::size_t bytes = kernels::BytesOf(format.format, static_cast<std::int64_t>(rows),
                                               static_cast<std::int64_t>(cols));
    writer->Tensor(name, {cols, rows}, format.gguf, bytes);
    const std::size_t begin = bytes_.size();
    for (std::size_t i = 0; i < bytes; ++i) bytes_.push_back(static_cast<char>(random_()));
    const auto block = static_cast<std::size_t>(info.bytes);
    for (std::size_t at = begin; at < bytes_.size(); at += block) {
      for (const std::size_t scale : format.scales) {
        // K formats multiply by a second scale of up to 63.
        const float most = info.block == 256 ? 0.0004f : 0.01f;
        const F16 bits = ToF16(most * static_cast<float>(random_() % 1000) / 1000);
        std::memcpy(bytes_.data() + at + scale, &bits, sizeof(bits));
      }
    }
    Pad();
  }
  void Vector(std::string_view name, std::uint64_t n, model::testing::GgufWriter* writer) {
    writer->F32Tensor(name, {n});
    for (std::uint64_t i = 0; i < n; ++i) {
      const float value = 0.5f + static_cast<float>(random_() % 1000) / 1000;
      bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    Pad();
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void Pad() { bytes_.resize((bytes_.size() + 31) / 32 * 32); }

  std::mt19937 random_;
  std::string bytes_;
};

void AddMetadata(const QuantizedModel& model, model::testing::GgufWriter* w) {
  std::vector<std::string> tokens = {"a", "b", "ab"};
  for (std::uint64_t i = tokens.size(); i < kVocab; ++i) tokens.push_back(absl::StrCat("t", i));
  w->Str("general.architecture", "llama")
      .Str("general.name", "random")
      .U32("llama.block_count", model.layers)
      .U32("llama.context_length", 512)
      .U32("llama.embedding_length", kModel)
      .U32("llama.feed_forward_length", static_cast<std::uint32_t>(model.ffn))
      .U32("llama.attention.head_count", static_cast<std::uint32_t>(model.heads))
      .U32("llama.attention.head_count_kv", static_cast<std::uint32_t>(model.kv_heads))
      .U32("llama.attention.key_length", static_cast<std::uint32_t>(model.head_dim))
      .U32("llama.attention.value_length", static_cast<std::uint32_t>(model.head_dim))
      .F32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .Str("tokenizer.ggml.model", "gpt2")
      .Str("tokenizer.ggml.pre", "smollm")
      .Strs("tokenizer.ggml.tokens", tokens)
      .Array<std::int32_t>("tokenizer.ggml.token_type", 5, std::vector<std::int32_t>(kVocab, 1))
      .Strs("tokenizer.ggml.merges", {"a b"})
      .U32("tokenizer.ggml.bos_token_id", 1)
      .U32("tokenizer.ggml.eos_token_id", 2);
}

const Format& FormatOf(WeightFormat format) {
  const auto found = std::ranges::find(kFormats, format, &Format::format);
  CHECK(found != kFormats.end());
  return *found;
}

std::string MakeModel(const QuantizedModel& model) {
  model::testing::GgufWriter w;
  AddMetadata(model, &w);
  Contents contents(static_cast<std::uint32_t>(model.formats[0]) + 1);
  std::size_t next = 0;
  const auto matrix = [&](const std::string& name, std::uint64_t cols, std::uint64_t rows) {
    contents.Matrix(name, cols, rows, FormatOf(model.formats[next++ % model.formats.size()]), &w);
  };
  const std::uint64_t q = model.heads * model.head_dim, kv = model.kv_heads * model.head_dim;
  matrix("token_embd.weight", kModel, kVocab);
  contents.Vector("output_norm.weight", kModel, &w);
  for (std::uint32_t layer = 0; layer < model.layers; ++layer) {
    const std::string blk = absl::StrCat("blk.", layer, ".");
    contents.Vector(blk + "attn_norm.weight", kModel, &w);
    matrix(blk + "attn_q.weight", kModel, q);
    matrix(blk + "attn_k.weight", kModel, kv);
    matrix(blk + "attn_v.weight", kModel, kv);
    matrix(blk + "attn_output.weight", q, kModel);
    contents.Vector(blk + "ffn_norm.weight", kModel, &w);
    matrix(blk + "ffn_gate.weight", kModel, model.ffn);
    matrix(blk + "ffn_up.weight", kModel, model.ffn);
    matrix(blk + "ffn_down.weight", model.ffn, kModel);
  }
  std::string file = w.Write();
  CHECK_LE(contents.bytes().size(), file.size());
  file.replace(file.size() - contents.bytes().size(), contents.bytes().size(), contents.bytes());
  return file;
}

}  // namespace

void WriteQuantizedModel(const QuantizedModel& model, const std::string& path) {
  // Another process may have the file mapped.
  const std::string written = absl::StrCat(path, ".", ::getpid());
  std::ofstream(written, std::ios::binary) << MakeModel(model);
  std::filesystem::rename(written, path);
}

std::vector<std::pair<std::string, std::string>> WriteQuantizedModels(const std::string& folder) {
  std::vector<std::pair<std::string, std::string>> models;
  for (std::size_t first = 0; first < kFormats.size(); first += 3) {
    QuantizedModel model;
    for (std::size_t i = 0; i < kFormats.size(); ++i) {
      model.formats.push_back(kFormats[(first + i) % kFormats.size()].format);
    }
    const std::string name =
        absl::StrCat("from ", ToAbsl(kernels::Info(kFormats[first].format).name));
    const std::string path = absl::StrCat(folder, "/penstock_quantized_", first, ".gguf");
    WriteQuantizedModel(model, path);
    models.emplace_back(name, path);
  }
  return models;
}

}  // namespace penstock::tests
