// SPDX-License-Identifier: Apache-2.0
// Attention of Numerics::kFast over the stand-in for cuDNN, beside our kernel: Ops of both numerics
// have the same pages and queries.
#include "kernels/fast_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cuda_standin.h"
#include "device/cudnn_standin.h"
#include "kernels/elementwise.h"

namespace penstock::kernels {
namespace {

struct Part {
  std::int32_t rows;
  std::int32_t position;
};
struct Case {
  const char* name;
  std::vector<Part> parts;
  bool is_fast = true;  // Is cuDNN's.
  std::int32_t qo_heads = 4;
  KvGroup group = {.cache_layers = 2, .kv_heads = 2, .k_dim = 64, .v_dim = 64};
  std::int32_t block_tokens = 16;
  std::int32_t page_tokens = 16;
};

class FastAttentionTest : public testing::Test {
 protected:
  FastAttentionTest() {
    cuda_standin::Reset({});
    cudnn_standin::Set({});
  }
  ~FastAttentionTest() override {
    fast_.reset();
    exact_.reset();
    EXPECT_EQ(cudnn_standin::Now().handles, 0);
    EXPECT_EQ(cudnn_standin::Now().descriptors, 0);
    EXPECT_EQ(cudnn_standin::Now().misuses, misuses_) << cudnn_standin::Now().last_misuse;
    cudnn_standin::Set({});
  }
  void MakeOps(const CudaPlugin& plugin = *penstock_cuda_plugin()) {
    fast_.reset();
    exact_.reset();
    device_ = CudaDevice::Make(plugin, {.threads = 1}).value();
    fast_ = MakeCudaOps(*device_, Numerics::kFast).value();
    exact_ = MakeCudaOps(*device_, Numerics::kExact).value();
  }
  // Attends both ways, layer 1 of 2, and checks that results agree. Runs of cuDNN, but for those of
  // its check.
  std::int64_t Compare(const Case& c);

  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<Ops> fast_, exact_;
  const std::int64_t misuses_ = cudnn_standin::Now().misuses;
};

std::vector<float> Attend(Ops& ops, CudaDevice& device, const float* q, const Case& c,
                          const KvBatch& kv, std::size_t rows) {
  const std::size_t cols = static_cast<std::size_t>(c.qo_heads * c.group.v_dim);
  std::vector<float> got(rows * cols);
  const auto out = device.Allocate(got.size() * sizeof(float)).value();
  Activations to;
  to.cols = static_cast<std::int32_t>(cols);
  to.f32 = reinterpret_cast<float*>(out->data());
  ops.Attention(q, c.qo_heads, 1 / std::sqrt(static_cast<float>(c.group.k_dim)), kv, to);
  ops.stream().Copy(reinterpret_cast<std::byte*>(got.data()), out->data(),
                    got.size() * sizeof(float));
  EXPECT_TRUE(ops.stream().Synchronize().ok());
  return got;
}

std::int64_t FastAttentionTest::Compare(const Case& c) {
  SCOPED_TRACE(c.name);
  const PageLayout layout = PageLayout::Make(c.group, c.block_tokens, c.page_tokens).value();
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::size_t rows = 0, slab_count = 0;
  for (const Part& part : c.parts) {
    rows += static_cast<std::size_t>(part.rows);
    slab_count +=
        static_cast<std::size_t>((part.position + part.rows + c.block_tokens - 1) / c.block_tokens);
  }
  std::vector<SlabRef> slabs(slab_count);
  for (std::size_t i = 0; i < slab_count; ++i) slabs[i].index = i & 0xffffffU;
  std::ranges::shuffle(slabs, random);
  std::vector<std::byte> bytes(slab_count * layout.slab_bytes());
  std::vector<float> numbers(layout.slab_bytes() / 2);
  for (std::size_t s = 0; s < slab_count; ++s) {  // Of int8 levels and f32, bits of some kind.
    std::byte* const slab = bytes.data() + s * layout.slab_bytes();
    for (float& x : numbers) x = uniform(random);
    if (c.group.dtype == KvDtype::kF16 || c.group.dtype == KvDtype::kBF16) {
      NarrowRow(c.group.dtype, numbers.data(), static_cast<std::int32_t>(numbers.size()), slab,
                nullptr);
    }
  }
  const auto pool = device_->Allocate(bytes.size()).value();
  std::vector<float> queries(rows * static_cast<std::size_t>(c.qo_heads * c.group.k_dim));
  for (float& x : queries) x = uniform(random);
  const auto q = device_->Allocate(queries.size() * sizeof(float)).value();
  exact_->stream().Copy(pool->data(), bytes.data(), bytes.size());
  exact_->stream().Copy(q->data(), reinterpret_cast<const std::byte*>(queries.data()),
                        queries.size() * sizeof(float));
  EXPECT_TRUE(exact_->stream().Synchronize().ok());

  std::vector<SequenceRows> sequences;
  std::size_t first = 0;
  std::int32_t row = 0;
  for (const Part& part : c.parts) {
    const auto count =
        static_cast<std::size_t>((part.position + part.rows + c.block_tokens - 1) / c.block_tokens);
    sequences.push_back({.row_begin = row,
                         .rows = part.rows,
                         .position = part.position,
                         .slabs = std::span(slabs).subspan(first, count)});
    first += count;
    row += part.rows;
  }
  std::byte* const base = pool->data();
  const std::size_t stride = layout.slab_bytes();
  KvBatch kv = {.layout = &layout,
                .pools = {.base = {&base, 1}, .stride_bytes = {&stride, 1}},
                .cache_layer = 1,
                .sequences = sequences};
  const auto* const q_data = reinterpret_cast<const float*>(q->data());
  const std::vector<float> want = Attend(*exact_, *device_, q_data, c, kv, rows);
  kv.batch = fast_->NewBatch();
  (void)Attend(*fast_, *device_, q_data, c, kv, rows);  // With the check.
  const std::int64_t runs = cudnn_standin::Now().runs;
  const std::vector<float> got = Attend(*fast_, *device_, q_data, c, kv, rows);
  float apart = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const float distance = std::abs(want[i] - got[i]);
    if (distance > apart || std::isnan(distance)) apart = distance;  // A NaN stays.
  }
  EXPECT_LE(apart, FastAttentionBound(c.group.dtype));
  return cudnn_standin::Now().runs - runs;
}

TEST_F(FastAttentionTest, AgreesWithOurKernel) {
  MakeOps();
  const KvGroup group = Case{}.group;
  KvGroup bf16 = group, int8 = group, f32 = group, window = group, wide = group, one = group;
  bf16.dtype = KvDtype::kBF16;
  int8.dtype = KvDtype::kInt8;
  f32.dtype = KvDtype::kF32;
  window.window_tokens = 40;
  wide.k_dim = 128;
  wide.v_dim = 96;
  one.kv_heads = 1;
  const Case cases[] = {
      {.name = "a prompt", .parts = {{64, 0}}},
      {.name = "a partial last block", .parts = {{71, 0}}},
      {.name = "behind a prefix", .parts = {{64, 48}}},
      {.name = "behind a prefix, ends inside a block", .parts = {{65, 37}}},
      {.name = "unequal lengths", .parts = {{64, 0}, {3, 5}, {1, 90}, {80, 16}, {17, 0}}},
      {.name = "each head its own", .parts = {{64, 0}}, .qo_heads = 2},
      {.name = "one KV head", .parts = {{66, 3}}, .qo_heads = 3, .group = one},
      {.name = "bf16", .parts = {{64, 0}, {70, 9}}, .group = bf16},
      {.name = "K wider than V", .parts = {{64, 10}}, .group = wide},
      {.name = "large blocks", .parts = {{64, 5}}, .block_tokens = 64, .page_tokens = 64},
      {.name = "few rows", .parts = {{63, 0}, {1, 200}}, .is_fast = false},
      {.name = "int8", .parts = {{64, 0}}, .is_fast = false, .group = int8},
      {.name = "f32", .parts = {{64, 0}}, .is_fast = false, .group = f32},
      {.name = "a window", .parts = {{64, 0}}, .is_fast = false, .group = window},
      {.name = "small pages", .parts = {{64, 0}}, .is_fast = false, .page_tokens = 8},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(Compare(c), c.is_fast ? 1 : 0) << c.name;
    if (HasFailure()) return;
  }
}

TEST_F(FastAttentionTest, OnePlanServesManyBatches) {
  MakeOps();
  const std::int64_t before = cudnn_standin::Now().plans;
  EXPECT_EQ(Compare({.name = "one", .parts = {{64, 0}}}), 1);
  const std::int64_t first = cudnn_standin::Now().plans - before;
  EXPECT_EQ(first, 2);  // Its own and the check's.
  EXPECT_EQ(Compare({.name = "another", .parts = {{64, 60}}}), 1);
  EXPECT_EQ(cudnn_standin::Now().plans - before, first);
  EXPECT_EQ(Compare({.name = "longer", .parts = {{65, 0}}}), 1);
  EXPECT_EQ(cudnn_standin::Now().plans - before, first + 1);
}

// Each kind of pages has two: the check's, and that of what is attended to.
TEST_F(FastAttentionTest, ThePlanUsedLongestAgoGoes) {
  MakeOps();
  const std::int64_t before = cudnn_standin::Now().plans;
  std::vector<Case> cases;
  for (std::int32_t k = 1; k <= 6; ++k) {
    for (std::int32_t v = 1; v <= 6; ++v) {
      const KvGroup group = {.cache_layers = 2, .kv_heads = 1, .k_dim = 16 * k, .v_dim = 16 * v};
      cases.push_back({.name = "a kind", .parts = {{64, 0}}, .qo_heads = 1, .group = group});
    }
  }
  ASSERT_GT(2 * cases.size(), kFastPlansMax);
  for (const Case& c : cases) ASSERT_EQ(Compare(c), 1);
  const auto made = [&] { return cudnn_standin::Now().plans - before; };
  EXPECT_EQ(made(), 2 * std::ssize(cases));
  EXPECT_EQ(Compare(cases.back()), 1);
  EXPECT_EQ(made(), 2 * std::ssize(cases));
  EXPECT_EQ(Compare(cases.front()), 1);
  EXPECT_EQ(made(), 2 * std::ssize(cases) + 1);
}

TEST_F(FastAttentionTest, IsDroppedWhereItIsWrongOrNotThere) {
  const Case prompt = {.name = "a prompt", .parts = {{70, 0}}};
  KvGroup bf16 = prompt.group;
  bf16.dtype = KvDtype::kBF16;
  const Case prompt_bf16 = {.name = "a prompt, bf16", .parts = {{70, 0}}, .group = bf16};
  const std::pair<const char*, cudnn_standin::Faults> faults[] = {
      {"wrong", {.wrong = true}},
      {"a NaN", {.nan = true}},
      {"unsupported", {.unsupported = true}},
      {"no plan", {.plan_error = 3000}},
      {"does not run", {.execute_error = 5000}},
      {"a large workspace", {.workspace_bytes = (std::int64_t{64} << 20) + 1}}};
  for (const auto& [name, fault] : faults) {
    SCOPED_TRACE(name);
    cudnn_standin::Set(fault);
    MakeOps();
    EXPECT_EQ(Compare(prompt), 0);
    EXPECT_EQ(Compare(prompt_bf16), 0);
    cudnn_standin::Set({});
    EXPECT_EQ(Compare(prompt), 0);  // For good.
  }
  MakeOps();
  EXPECT_EQ(Compare(prompt), 1);
}

TEST_F(FastAttentionTest, FallsBackWhenItFailsLater) {
  MakeOps();
  const Case prompt = {.name = "a prompt", .parts = {{70, 0}}};
  EXPECT_EQ(Compare(prompt), 1);
  cudnn_standin::Set({.execute_error = 5000});
  EXPECT_EQ(Compare(prompt), 0);
  cudnn_standin::Set({});
  EXPECT_EQ(Compare(prompt), 0);
}

TEST_F(FastAttentionTest, IsOurKernelsWithoutCudnn) {
  static constexpr CudnnLibrary absent = {.api = nullptr, .version = 0, .why_not = "no such file"};
  CudaPlugin plugin = *penstock_cuda_plugin();
  plugin.cudnn = [] { return &absent; };
  MakeOps(plugin);
  EXPECT_EQ(Compare({.name = "a prompt", .parts = {{64, 0}}}), 0);
  plugin.cudnn = nullptr;
  MakeOps(plugin);
  EXPECT_EQ(Compare({.name = "a prompt", .parts = {{64, 0}}}), 0);
  fast_.reset();
  exact_.reset();
  device_.reset();
}

TEST_F(FastAttentionTest, CheckSaysWhatIsWrong) {
  const auto device = CudaDevice::Make(*penstock_cuda_plugin(), {.threads = 1}).value();
  const auto check = [&](const KvGroup& group) {
    return CheckFastAttention(*device, PageLayout::Make(group, 16, 16).value(), 4);
  };
  const KvGroup group = Case{}.group;
  EXPECT_TRUE(check(group).ok());
  KvGroup window = group;
  window.window_tokens = 32;
  EXPECT_EQ(check(window), absl::UnimplementedError("a window of 32 tokens"));
  cudnn_standin::Set({.unsupported = true});
  EXPECT_EQ(check(group), absl::UnimplementedError("cuDNN has no engine for this"));
  cudnn_standin::Set({.wrong = true});
  const absl::Status wrong = check(group);
  EXPECT_EQ(wrong.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(wrong.message().find("at most 0.00390625 is allowed"), absl::string_view::npos)
      << wrong;
}

}  // namespace
}  // namespace penstock::kernels
