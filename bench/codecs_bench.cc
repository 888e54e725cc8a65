// SPDX-License-Identifier: Apache-2.0
// Codecs of KV blocks on the pages that SmolLM2 makes of this repository's README, one thread:
//   encode_GBps  whole frames: payload, checksums, header; of uncompressed bytes per second
//   decode_GBps  the reverse, the frame checked first
//   memcpy_GBps  copying the same slabs
//   ratio        uncompressed bytes / bytes of the frames
// The three take turns, a block each; a figure is that of the median block. Without the model in
// .cache/models there is nothing to measure, and it says so.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/status.h"
#include "base/time.h"
#include "engine/local_model.h"
#include "kvstore/codecs/codec.h"

namespace penstock::bench {
namespace {

using kvstore::CodecId;
using kvstore::CodecOf;

constexpr std::size_t kTokens = 2048;
constexpr int kRounds = 5;  // Over all blocks.

// Slabs of one group, copied out of a pool.
struct Blocks {
  PageLayout layout;
  std::vector<std::vector<std::byte>> slabs;
};

absl::StatusOr<Blocks> Compute(KvDtype dtype) {
  const std::string source = PENSTOCK_SOURCE_DIR;
  ASSIGN_OR_RETURN(
      const std::unique_ptr<engine::LocalModel> model,
      engine::LocalModel::Open(source + "/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(source + "/README.md", std::size_t{1} << 20));
  engine::LocalModel::Options options;
  options.memory.kv_dtype = dtype;
  options.memory.context_tokens = static_cast<std::int32_t>(kTokens) + 1;
  RETURN_IF_ERROR(model->Load(options, [](std::size_t, std::size_t) {}));
  ASSIGN_OR_RETURN(const std::unique_ptr<engine::Engine> engine, model->MakeEngine());
  std::vector<TokenId> tokens = model->tokenizer().Encode(text, {});
  tokens.resize(std::min(tokens.size(), kTokens) / 32 * 32);

  std::map<std::int32_t, engine::SlabRef> slabs;  // By block.
  engine->set_layer_done([&](std::int32_t, std::span<const engine::PrefillBlocks> prefills) {
    const engine::PrefillBlocks& told = prefills[0];
    for (std::int32_t b = told.first_block; b < told.end_block; ++b) {
      slabs[b] = told.blocks[0].slabs[static_cast<std::size_t>(b - told.blocks[0].first_block)];
    }
  });
  ASSIGN_OR_RETURN(const engine::RequestId id,
                   engine->SubmitPrefill({.tokens = tokens, .priority = 0, .root = {}}));
  while (engine->Step().prefilled.empty()) {
  }
  Blocks blocks{engine->pool().layout(0), {}};
  for (const auto& [block, slab] : slabs) {
    const std::byte* const from = engine->pool().Address(0, slab);
    blocks.slabs.emplace_back(from, from + blocks.layout.block_bytes());
  }
  engine->EndPrefill(id);
  return blocks;
}

// Computed once per type; null where they cannot be.
const Blocks* BlocksOf(KvDtype dtype) {
  static std::map<KvDtype, absl::StatusOr<Blocks>> all;
  const auto [entry, added] = all.try_emplace(dtype, absl::UnknownError(""));
  if (added) entry->second = Compute(dtype);
  return entry->second.ok() ? &*entry->second : nullptr;
}

double MedianGbps(std::size_t bytes, std::vector<double> seconds) {
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return 1e-9 * static_cast<double>(bytes) / *middle;
}

template <typename Work>
void Time(std::vector<double>& seconds, Work work) {
  const MonoTime begin = SteadyClock().Now();
  work();
  seconds.push_back(ToSeconds(SteadyClock().Now() - begin));
}

void Measure(benchmark::State& state, CodecId id, KvDtype dtype) {
  const Blocks* const blocks = BlocksOf(dtype);
  if (blocks == nullptr) {
    state.SkipWithError(
        "no SmolLM2-135M-Instruct.Q4_1.gguf in .cache/models: ./dev demo fetches it");
    return;
  }
  const kvstore::Codec& codec = CodecOf(id);
  const kvstore::FrameMeta meta = {
      .key = {},
      .loss = kvstore::IsLossless(id) ? LossClass::kExact : LossClass::kKl2,
      .group = 0,
      .first_position = 0};
  kvstore::CodecScratch scratch;
  // A place of its own for each block, as in a pool.
  const std::size_t room = FrameBytesMax(codec, kvstore::ShapeOf(blocks->layout), false);
  std::vector<std::vector<std::byte>> frames(blocks->slabs.size(), std::vector<std::byte>(room));
  std::vector<std::vector<std::byte>> back = blocks->slabs;
  std::vector<double> encode, decode, copy;
  std::size_t frame_bytes = 0;
  for (auto _ : state) {
    frame_bytes = 0;
    for (std::size_t b = 0; b < blocks->slabs.size(); ++b) {
      const std::vector<std::byte>& slab = blocks->slabs[b];
      std::size_t bytes = 0;
      Time(encode, [&] {
        const auto encoded =
            EncodeFrame(codec, meta, blocks->layout, slab.data(), {}, scratch, frames[b]);
        CHECK(encoded.ok());
        bytes = *encoded;
      });
      frame_bytes += kvstore::FrameBytesSent(*kvstore::FrameHeaderBytesOf(frames[b]), bytes);
      const std::size_t other = (b + blocks->slabs.size() / 2) % blocks->slabs.size();
      Time(copy, [&] {
        std::memcpy(back[other].data(), blocks->slabs[other].data(), slab.size());
        benchmark::ClobberMemory();
      });
      Time(decode, [&] {
        const auto frame = kvstore::ParseFrame(std::span(frames[b]).first(bytes), {});
        CHECK(frame.ok());
        CHECK(DecodeFrame(*frame, blocks->layout, scratch, back[b].data()).ok());
      });
    }
  }
  const std::size_t block_bytes = blocks->layout.block_bytes();
  state.counters["encode_GBps"] = MedianGbps(block_bytes, encode);
  state.counters["decode_GBps"] = MedianGbps(block_bytes, decode);
  state.counters["memcpy_GBps"] = MedianGbps(block_bytes, copy);
  state.counters["ratio"] =
      static_cast<double>(block_bytes * blocks->slabs.size()) / static_cast<double>(frame_bytes);
}

const bool kRegistered = [] {
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16}) {
    for (const CodecId id : kvstore::AllCodecs()) {
      const std::string name = std::string(ToString(dtype)) + "/" + std::string(ToString(id));
      benchmark::RegisterBenchmark(name.c_str(),
                                   [=](benchmark::State& state) { Measure(state, id, dtype); })
          ->Iterations(kRounds)
          ->Unit(benchmark::kMillisecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace penstock::bench
