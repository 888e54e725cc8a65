// SPDX-License-Identifier: Apache-2.0
// Makes kvstore/codecs/ans_frequencies.inc: how often each code is met in columns of each class,
// on the KV that models make of a text, at all three levels, each model with the same weight.
//
//   ans_profile --text LICENSE smollm2 gemma3-270m
//
// (the files of those models; `penstock model get` fetches them) made the tables of version 1.
// Other tables are another version of the codecs.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"
#include "engine/given_text.h"
#include "engine/local_model.h"
#include "kernels/kv_codec_steps.h"
#include "kvstore/codecs/ans_tables.h"

namespace penstock::bench {
namespace {

using kvstore::kAnsTops;
using kvstore::kAnsWide;

constexpr std::int32_t kTokens = 2048;
constexpr std::uint32_t kAll = 1u << kernels::kAnsBits;

// [class][|code|], of keys or of values; shares of a model's codes.
using Counts = std::vector<std::vector<double>>;
Counts NoCounts() {
  Counts counts(kAnsWide);
  for (std::size_t c = 0; c < kAnsWide; ++c) {
    counts[c].resize(static_cast<std::size_t>(kAnsTops[c]) + 1);
  }
  return counts;
}

struct Unit {
  bool keys;
  kernels::KvMatrix shape;
  const std::byte* x;
};

void Count(const Unit& unit, const kvstore::AnsLevel& level, Counts& counts) {
  const auto dim = static_cast<std::size_t>(unit.shape.dim);
  const std::size_t values = static_cast<std::size_t>(unit.shape.rows) * dim;
  std::vector<std::int16_t> codes(values);
  std::vector<std::int32_t> tops(dim);
  std::vector<std::byte> steps(2 + static_cast<std::size_t>(unit.shape.rows));
  std::vector<std::int8_t> offsets(dim);
  if (unit.keys) {
    kernels::QuantizeKeySteps(unit.shape, level.keys, unit.x, steps.data(), offsets.data(),
                              codes.data(), tops.data());
  } else {
    kernels::QuantizeValueSteps(unit.shape, level.values, unit.x, steps.data(), codes.data(),
                                tops.data());
  }
  for (std::size_t i = 0; i < values; ++i) {
    const std::uint8_t c = kvstore::AnsClassOf(tops[i % dim]);
    if (c < kAnsWide) ++counts[c][static_cast<std::size_t>(std::abs(codes[i]))];
  }
}

// Adds what one model's blocks have, of keys to counts[0] and of values to counts[1].
absl::Status AddModel(const std::string& path, const std::string& text, Counts (&counts)[2]) {
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::LocalModel> model, engine::LocalModel::Open(path));
  engine::LocalModel::Options options;
  options.memory.context_tokens = kTokens;
  RETURN_IF_ERROR(model->Load(options, [](std::size_t, std::size_t) {}));
  std::vector<TokenId> tokens = model->tokenizer().Encode(text, {.parse_special = false});
  if (tokens.size() < kTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", tokens.size(), " tokens, ", kTokens, " are needed"));
  }
  tokens.resize(kTokens);
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::KvPool> pool, model->MakePool());
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::StepRunner> pass, model->MakeRunner(*pool));
  engine::GivenText prompt(*pass, *pool);
  RETURN_IF_ERROR(prompt.Feed(tokens));
  Counts own[2] = {NoCounts(), NoCounts()};
  for (std::int32_t g = 0; g < pool->groups(); ++g) {
    const PageLayout& layout = pool->layout(g);
    for (const engine::SlabRef slab : prompt.blocks().slabs(g)) {
      for (std::int32_t page = 0; page < layout.group.cache_layers * layout.group.kv_heads;
           ++page) {
        const std::byte* const x = pool->Address(g, slab) + layout.PageOffset(0, page, 0);
        const Unit keys = {true, {layout.group.dtype, layout.block_tokens, layout.group.k_dim}, x};
        const Unit values = {false,
                             {layout.group.dtype, layout.block_tokens, layout.group.v_dim},
                             x + layout.k_bytes()};
        for (const kvstore::CodecId id : {kvstore::CodecId::kAnsFine, kvstore::CodecId::kAnsMedium,
                                          kvstore::CodecId::kAnsCoarse}) {
          Count(keys, kvstore::AnsLevelOf(id), own[0]);
          Count(values, kvstore::AnsLevelOf(id), own[1]);
        }
      }
    }
  }
  for (std::size_t kind = 0; kind < 2; ++kind) {
    double all = 0;
    for (const std::vector<double>& c : own[kind]) {
      for (const double count : c) all += count;
    }
    for (std::size_t c = 0; c < own[kind].size(); ++c) {
      for (std::size_t i = 0; i < own[kind][c].size(); ++i)
        counts[kind][c][i] += own[kind][c][i] / all;
    }
  }
  return absl::OkStatus();
}

// Of codes 0 to top, each of both signs but for 0: at least 1, and kAll in all. What is left once
// all are rounded down goes to those that lost most.
std::vector<std::uint32_t> Frequencies(const std::vector<double>& counts) {
  double all = 0;
  for (const double count : counts) all += count;
  const auto spare = static_cast<double>(kAll - (2 * counts.size() - 1));
  std::vector<std::uint32_t> frequencies;
  std::vector<std::pair<double, std::size_t>> lost;
  std::uint32_t left = kAll;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double each = all > 0 ? spare * counts[i] / all / (i == 0 ? 1 : 2) : 0;
    frequencies.push_back(1 + static_cast<std::uint32_t>(std::floor(each)));
    left -= frequencies[i] * (i == 0 ? 1 : 2);
    if (i > 0) lost.emplace_back(std::floor(each) - each, i);
  }
  std::ranges::sort(lost);
  for (std::size_t i = 0; left >= 2; i = (i + 1) % lost.size(), left -= 2) {
    ++frequencies[lost[i].second];
  }
  frequencies[0] += left;
  return frequencies;
}

void Print(const char* name, const Counts& counts) {
  std::printf("constexpr std::uint16_t %s[] = {\n", name);
  for (std::size_t c = 1; c < kAnsWide; ++c) {
    const std::vector<std::uint32_t> frequencies = Frequencies(counts[c]);
    std::printf("    // Up to %d.\n", kAnsTops[c]);
    for (std::size_t i = 0; i < frequencies.size(); i += 16) {
      const std::size_t count = std::min<std::size_t>(16, frequencies.size() - i);
      std::printf("    %s,\n",
                  absl::StrJoin(frequencies.begin() + static_cast<std::ptrdiff_t>(i),
                                frequencies.begin() + static_cast<std::ptrdiff_t>(i + count), ", ")
                      .c_str());
    }
  }
  std::printf("};\n");
}

absl::Status Run(const std::string& text_path, const std::vector<std::string>& models) {
  ASSIGN_OR_RETURN(std::string text, ReadFile(text_path, std::size_t{1} << 26));
  text.resize(std::min<std::size_t>(text.size(), 16 * kTokens));
  Counts counts[2] = {NoCounts(), NoCounts()};
  for (const std::string& model : models) RETURN_IF_ERROR(AddModel(model, text, counts));
  std::printf(
      "// SPDX-License-Identifier: Apache-2.0\n"
      "// Made by bench/ans_profile.cc; included by ans_tables.cc inside its unnamed namespace.\n"
      "// clang-format off\n\n");
  Print("kKeyFrequencies", counts[0]);
  std::printf("\n");
  Print("kValueFrequencies", counts[1]);
  return absl::OkStatus();
}

}  // namespace
}  // namespace penstock::bench

int main(int argc, char** argv) {
  CLI::App app("Makes the static tables of the KV store's entropy coders");
  std::string text;
  std::vector<std::string> models;
  app.add_option("--text", text, "A text of 2,048 tokens or more")->required();
  app.add_option("MODEL", models, "Model files")->required();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = penstock::bench::Run(text, models);
  if (status.ok()) return 0;
  std::fprintf(stderr, "ans_profile: %s\n", std::string(status.message()).c_str());
  return 1;
}
