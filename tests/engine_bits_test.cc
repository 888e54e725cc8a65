// SPDX-License-Identifier: Apache-2.0
// D3 through the batching engine: a request's tokens and log-probabilities are the same bits alone
// and in a crowd that preempts it, shares its prefix, swaps it out and chunks it differently.
#include <algorithm>
#include <cstring>
#include <map>
#include <ostream>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/check_ok.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "model/model_file.h"
#include "tests/engine_harness.h"
#include "transfer/plan.h"

namespace penstock::tests {
namespace {

using engine::Engine;
using engine::Request;
using engine::RequestId;

struct Model {
  const char* name;
  KvDtype kv_dtype = KvDtype::kF16;
  // In the crowd, and of a worker; alone it is on one device.
  std::int32_t shards = 1;
  std::int32_t sums = 1;
  std::int32_t stages = 1;
};
void PrintTo(const Model& model, std::ostream* out) {
  *out << model.name << " " << ToString(model.kv_dtype) << ", " << model.stages << " stages, "
       << model.shards << " shards, " << model.sums << " sums";
}

class EngineBitsTest : public testing::TestWithParam<Model> {
 protected:
  void SetUp() override {
    auto file = model::ModelFile::Open(
        absl::StrCat(PENSTOCK_SOURCE_DIR, "/tests/golden/tiny/", GetParam().name));
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
  }

  // On an engine of its own.
  EngineHarness Make(int threads, const Engine::Options& options, std::int32_t shards = 1,
                     std::int32_t stages = 1) const {
    return {*file_,
            {.kv_dtype = GetParam().kv_dtype,
             .threads = threads,
             .stages = stages,
             .shards = shards,
             .sums = GetParam().sums},
            options};
  }
  // By that of each request alone.
  Answers Alone(std::span<const Request> requests) const {
    Answers alone;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      for (auto& [key, drawn] : Make(1, {.share_prefixes = false}).Run(requests.subspan(i, 1)))
        alone[{i, key.second}] = std::move(drawn);
    }
    return alone;
  }

  std::vector<Request> RandomRequests(std::uint32_t seed, std::size_t count) const {
    std::mt19937 random(seed);
    const auto vocab = static_cast<std::uint32_t>(file_->architecture().vocab);
    std::vector<TokenId> common(70);
    for (TokenId& t : common) t = static_cast<TokenId>(random() % vocab);
    std::vector<Request> requests(count);
    for (Request& r : requests) {
      if (random() % 2 == 0)
        r.prompt.assign(common.begin(),
                        common.begin() + static_cast<std::ptrdiff_t>(random() % 70));
      const std::size_t own = 1 + random() % 90;
      for (std::size_t i = 0; i < own; ++i)
        r.prompt.push_back(static_cast<TokenId>(random() % vocab));
      r.sampling.temperature = random() % 3 == 0 ? 0 : 0.9;
      r.sampling.top_p = 0.95;
      r.sampling.frequency_penalty = 0.2;
      r.sampling.seed = random();
      r.sampling.logprobs = 0;
      r.max_tokens = static_cast<std::int32_t>(1 + random() % 60);
      r.n = static_cast<std::int32_t>(1 + random() % 3);
      r.priority = static_cast<std::int32_t>(random() % 3);
    }
    return requests;
  }

  std::unique_ptr<model::ModelFile> file_;
};

TEST_P(EngineBitsTest, AloneAndInACrowdThatPreempts) {
  const std::vector<Request> requests = RandomRequests(7, 12);
  const Answers alone = Alone(requests);
  std::size_t block_bytes = 0;
  for (const KvGroup& group : file_->architecture().MakeKvSpec(GetParam().kv_dtype).groups) {
    block_bytes += PageLayout::Make(group, 16, 16)->slab_bytes();
  }
  struct Case {
    const char* name;
    int threads;
    Engine::Options options;
    bool preempts;
  };
  // 512 tokens of KV: one request with all its choices fits, the crowd does not.
  const engine::KvPool::Options small = {
      .pool_bytes = 32 * block_bytes, .block_tokens = 16, .page_tokens = 16};
  const Case cases[] = {
      {"roomy", 2, {.step_tokens = 512}, false},
      {"small chunks", 2, {.step_tokens = 40, .chunk_tokens = 16, .sequences_max = 40}, false},
      {"recompute", 1, {.step_tokens = 128, .chunk_tokens = 48, .pool = small}, true},
      {"recompute, nothing shared",
       2,
       {.step_tokens = 128, .share_prefixes = false, .pool = small},
       true},
      {"swap",
       2,
       {.step_tokens = 128,
        .swap_bytes = std::size_t{16} << 20,
        .compute_tokens_per_s = 1,
        .pool = small},
       true},
  };
  const bool windowed = file_->architecture().layers[0].window_tokens > 0;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    EngineHarness harness = Make(c.threads, c.options, GetParam().shards, GetParam().stages);
    const Answers crowd = harness.Run(requests);
    ASSERT_EQ(crowd.size(), alone.size());
    for (const auto& [key, drawn] : alone) {
      EXPECT_EQ(crowd.at(key), drawn) << "request " << key.first << ", choice " << key.second;
    }
    if (windowed) continue;  // Layers that keep 8 tokens let the whole crowd fit.
    EXPECT_EQ(harness.preempted(), c.preempts);
    EXPECT_EQ(harness.swapped(), c.options.swap_bytes > 0);
  }
}

// Copies what a prefill engine tells, layer by layer, into slabs that a decode engine reserved,
// whose pages have another size. Either may be on shards, of which the host sees whole slabs.
void MoveToDecode(Engine& prefill, Engine& decode, std::int32_t layer,
                  const engine::PrefillBlocks& told, const engine::Reservation& to) {
  const KvLayerRef cache = prefill.pool().spec().layers[static_cast<std::size_t>(layer)];
  const auto g = static_cast<std::size_t>(cache.group);
  const auto plan =
      transfer::LayerPlan::Make({.layout = prefill.pool().layout(cache.group), .head_begin = 0},
                                {.layout = decode.pool().layout(cache.group), .head_begin = 0});
  CHECK(plan.ok());
  prefill.pool().WaitForCopy(prefill.pool().last_copy());
  const std::int32_t first_missing = to.reused_tokens / decode.pool().block_tokens();
  for (std::int32_t b = std::max({told.first_block, told.first_needed[g], first_missing});
       b < told.end_block; ++b) {
    const auto slab = [b](const engine::SequenceInput::Blocks& blocks) {
      return blocks.slabs[static_cast<std::size_t>(b - blocks.first_block)];
    };
    const std::byte* const from = prefill.pool().Address(cache.group, slab(told.blocks[g])) +
                                  plan->FromOffset(cache.cache_layer);
    std::byte* const place =
        decode.pool().Address(cache.group, slab(to.blocks[g])) + plan->ToOffset(cache.cache_layer);
    for (const transfer::ByteRun& run : plan->runs()) {
      std::memcpy(place + run.to, from + run.from, run.bytes);
    }
  }
}

// Answers by `decode`, on KV that `prefill` computed.
Answers RunOverTwo(Engine& prefill, Engine& decode, std::span<const Request> requests) {
  struct Flight {
    std::size_t index;
    engine::Reservation reservation;
  };
  std::map<RequestId, Flight> flights;
  prefill.set_layer_done([&](std::int32_t layer, std::span<const engine::PrefillBlocks> all) {
    for (const engine::PrefillBlocks& told : all) {
      MoveToDecode(prefill, decode, layer, told, flights.at(told.request).reservation);
    }
  });
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const std::span<const TokenId> prompt = requests[i].prompt;
    const std::span<const TokenId> moved = prompt.first(prompt.size() - 1);
    const auto reservation =
        decode.Reserve(static_cast<std::int32_t>(moved.size()), ChainsOf(moved, "", 16));
    CHECK_OK(reservation.status());
    const auto id = prefill.SubmitPrefill({.tokens = {moved.begin(), moved.end()}});
    CHECK_OK(id.status());
    flights.emplace(*id, Flight{i, *reservation});
  }
  Answers two;
  std::map<RequestId, std::size_t> running;
  while (!prefill.idle() || !decode.idle()) {
    for (const RequestId id : prefill.Step().prefilled) {
      const Flight& flight = flights.at(id);
      const auto adopted = decode.Adopt(flight.reservation.id, requests[flight.index]);
      CHECK_OK(adopted.status());
      running[*adopted] = flight.index;
      prefill.EndPrefill(id);
    }
    for (const engine::TokenOutput& output : decode.Step().outputs) {
      two[{running.at(output.request), output.choice}].push_back(
          {output.token->token, *output.token->logprob});
    }
  }
  EXPECT_EQ(prefill.PoolStats().bytes_held, 0u);
  EXPECT_EQ(decode.PoolStats().bytes_held, 0u);
  return two;
}

TEST_P(EngineBitsTest, OverTwoEngines) {
  std::vector<Request> requests = RandomRequests(11, 12);
  std::erase_if(requests, [](const Request& r) { return r.prompt.size() < 2; });
  const Answers alone = Alone(requests);
  // Stages and shards.
  using Split = std::pair<std::int32_t, std::int32_t>;
  const Split split = {GetParam().stages, GetParam().shards}, one = {1, 1};
  std::vector<std::pair<Split, Split>> pairs = {{split, split}};
  if (split != one) pairs = {{split, one}, {one, split}, {split, {1, GetParam().sums}}};
  if (split.first > 1 && split.second > 1) pairs.push_back({split, {2, 1}});
  for (const auto& [of_prefill, of_decode] : pairs) {
    SCOPED_TRACE(absl::StrCat("prefill on ", of_prefill.first, " x ", of_prefill.second,
                              ", decode on ", of_decode.first, " x ", of_decode.second));
    EngineHarness prefill = Make(
        1, {.chunk_tokens = 37, .pool = {.block_tokens = 16, .page_tokens = 16, .shared = true}},
        of_prefill.second, of_prefill.first);
    EngineHarness decode = Make(2, {.pool = {.block_tokens = 16, .page_tokens = 4, .shared = true}},
                                of_decode.second, of_decode.first);
    EXPECT_EQ(prefill.weights().digest(), decode.weights().digest());
    EXPECT_EQ(prefill.weights().digest().size(), 64u);
    EXPECT_EQ(decode.engine().pool().staged(), of_decode != one);
    EXPECT_EQ(RunOverTwo(prefill.engine(), decode.engine(), requests), alone);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Tiny, EngineBitsTest,
    testing::Values(Model{"llama3"}, Model{"mistral"}, Model{"qwen2"}, Model{"gemma3"},
                    Model{"llama3", KvDtype::kInt8}, Model{"gemma3", KvDtype::kInt8},
                    Model{"llama3", KvDtype::kF16, 1, 4}, Model{"llama3", KvDtype::kF16, 2, 4},
                    Model{"llama3", KvDtype::kF16, 4, 4}, Model{"gemma3", KvDtype::kInt8, 2, 2},
                    Model{"llama3", KvDtype::kF16, 1, 1, 3},
                    Model{"gemma3", KvDtype::kF16, 1, 1, 5},
                    Model{"gemma3", KvDtype::kInt8, 2, 2, 3}),
    [](const auto& test) {
      const Model& m = test.param;
      return absl::StrCat(m.name, "_", std::string(ToString(m.kv_dtype)), "_", m.shards, "_",
                          m.sums, m.stages > 1 ? absl::StrCat("_", m.stages, "_stages") : "");
    });

}  // namespace
}  // namespace penstock::tests
