// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_cuda.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

#include "base/seed_testing.h"
#include "kernels/attention.h"
#include "kernels/kv_batch_cuda_testing.h"

namespace penstock::kernels {
namespace {

#if defined(PENSTOCK_REAL_GPU)
constexpr bool kLarge = true;
#else
constexpr bool kLarge = false;
#endif

// The specification. Large shapes take the best target, which kernels/attention_test.cc holds to it.
std::vector<float> Reference(CudaBatch& batch, const CudaBatchShape& shape,
                             const std::vector<float>& q, float scale) {
  const AttendTarget target = kLarge ? AttendTargets().back() : AttendTargets().front();
  const std::int32_t qo_heads = shape.kv_heads * shape.group;
  std::vector<float> out(static_cast<std::size_t>(batch.rows() * qo_heads * shape.v_dim));
  for (std::size_t i = 0; i < batch.sequences().size(); ++i) {
    const CudaSequence& s = batch.sequences()[i];
    if (s.rows == 0) continue;
    const std::int32_t first_page = batch.FirstSeen(i) / shape.page_tokens;
    const std::int32_t last_page = (batch.End(i) - 1) / shape.page_tokens;
    for (std::int32_t head = 0; head < shape.kv_heads; ++head) {
      std::vector<const std::byte*> pages;
      for (std::int32_t page = first_page; page <= last_page; ++page) {
        pages.push_back(batch.HostPage(i, head, page));
      }
      AttentionTask task;
      const std::int64_t row = std::int64_t{s.row_begin} * qo_heads + head * shape.group;
      task.q = q.data() + row * shape.k_dim;
      task.q_token_stride = std::int64_t{qo_heads} * shape.k_dim;
      task.out = out.data() + row * shape.v_dim;
      task.out_token_stride = std::int64_t{qo_heads} * shape.v_dim;
      task.tokens = s.rows;
      task.heads = shape.group;
      task.position = s.position;
      task.window_tokens = shape.window_tokens;
      task.scale = scale;
      task.pages = pages;
      task.first_page_position = first_page * shape.page_tokens;
      task.page_tokens = shape.page_tokens;
      task.k_dim = shape.k_dim;
      task.v_dim = shape.v_dim;
      task.dtype = shape.dtype;
      std::vector<std::byte> scratch(
          AttentionScratchBytes(task.tokens, task.heads, task.k_dim, task.v_dim) + 64);
      void* start = scratch.data();
      std::size_t space = scratch.size();
      std::align(64, space - 64, start, space);
      target.attend(task, {static_cast<std::byte*>(start), space});
    }
  }
  return out;
}

// All NaN are one: their bits are the processor's own.
std::uint32_t Same(float x) {
  return std::isnan(x) ? 0x7fc00000u : std::bit_cast<std::uint32_t>(x);
}

void ExpectSame(const std::vector<float>& got, const std::vector<float>& want, std::int32_t v_dim) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (Same(got[i]) == Same(want[i])) continue;
    const auto dims = static_cast<std::size_t>(v_dim);
    FAIL() << std::hexfloat << got[i] << " and not " << want[i] << " in (row, head) " << i / dims
           << ", dim " << i % dims;
  }
}

void ExpectReference(CudaBatch& batch, const CudaBatchShape& shape, bool all_schedules = true) {
  SCOPED_TRACE(shape.ToString());
  const std::int32_t qo_heads = shape.kv_heads * shape.group;
  const std::vector<float> q =
      batch.Random(static_cast<std::size_t>(batch.rows() * qo_heads * shape.k_dim), 4);
  const float scale = 1 / std::sqrt(static_cast<float>(shape.k_dim));
  const std::vector<float> want = Reference(batch, shape, q, scale);
  const DeviceBuffer<float> device_q(q);
  DeviceBuffer<float> out(want.size());
  DeviceBuffer<std::byte> scratch(AttentionScratchBytesCuda(batch.kv(), qo_heads));
  const auto run = [&] {
    out.Poison();
    scratch.Poison();
    ASSERT_TRUE(Ran(AttentionCuda(device_q.data(), qo_heads, scale, batch.kv(), out.data(),
                                  scratch.data(), nullptr)));
    ExpectSame(out.Get(), want, shape.v_dim);
  };
  if (all_schedules) {
    ForEachSchedule(run);
  } else {
    run();
  }
}

void ExpectReference(const CudaBatchShape& shape, std::uint32_t seed = 1) {
  CudaBatch batch(shape, seed);
  ExpectReference(batch, shape);
}

TEST(AttentionCudaTest, OneRowAtEveryEdgeOfAPartition) {
  CudaBatchShape shape = {.group = 4, .k_dim = 32, .v_dim = 32};
  for (const std::int32_t position : {0, 1, 62, 63, 64, 126, 127, 254, 255, 256, 510, 511, 512}) {
    shape.sequences.push_back({1, position});
  }
  ExpectReference(shape);
  shape.dtype = KvDtype::kInt8;
  ExpectReference(shape);
}

TEST(AttentionCudaTest, GroupsOfHeads) {
  for (const std::int32_t group : {1, 2, 3, 4, 5, 7, 8, 9, 16, 71}) {
    ExpectReference(
        {.sequences = {{1, 300}, {1, 70}}, .kv_heads = 1, .group = group, .k_dim = 16, .v_dim = 24},
        static_cast<std::uint32_t>(group));
  }
  for (const std::int32_t group : {1, 3, 8}) {
    ExpectReference({.sequences = {{1, 300}, {1, 70}},
                     .kv_heads = 1,
                     .group = group,
                     .k_dim = 16,
                     .v_dim = 24,
                     .dtype = KvDtype::kInt8},
                    static_cast<std::uint32_t>(group));
  }
}

TEST(AttentionCudaTest, DtypesAndDims) {
  struct Case {
    std::int32_t k_dim, v_dim;
  };
  for (const KvDtype dtype : kKvDtypes) {
    for (const Case& c : {Case{8, 8}, Case{128, 128}, Case{72, 136}, Case{256, 200}}) {
      ExpectReference({.sequences = {{1, 130}, {20, 60}},
                       .kv_heads = 1,
                       .k_dim = c.k_dim,
                       .v_dim = c.v_dim,
                       .dtype = dtype});
    }
  }
  for (const KvDtype dtype : {KvDtype::kBF16, KvDtype::kInt8}) {
    ExpectReference({.sequences = {{1, 40}, {17, 5}},
                     .kv_heads = 1,
                     .k_dim = 576,
                     .v_dim = 512,
                     .dtype = dtype});
  }
  ExpectReference({.sequences = {{1, 10}, {17, 0}},
                   .kv_heads = 1,
                   .k_dim = 1024,
                   .v_dim = 1024,
                   .dtype = KvDtype::kF32});
}

TEST(AttentionCudaTest, PromptsAtEveryEdgeOfATile) {
  for (const std::int32_t rows : {17, 63, 64, 65}) {
    for (const std::int32_t position : {0, 200, 256}) {
      ExpectReference({.sequences = {{rows, position}}, .kv_heads = 1, .k_dim = 16, .v_dim = 16});
    }
  }
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kInt8}) {
    ExpectReference({.sequences = {{45, 230}},
                     .kv_heads = 1,
                     .group = 3,
                     .k_dim = 64,
                     .v_dim = 72,
                     .dtype = dtype});
  }
}

TEST(AttentionCudaTest, PagesAndBlocks) {
  struct Case {
    std::int32_t block_tokens, page_tokens;
    KvDtype dtype = KvDtype::kF16;
  };
  for (const Case& c : {Case{8, 8}, Case{16, 8}, Case{64, 16}, Case{4, 1}, Case{512, 512},
                        Case{8, 4, KvDtype::kInt8}, Case{512, 512, KvDtype::kInt8}}) {
    ExpectReference({.sequences = {{1, 270}, {30, 250}},
                     .kv_heads = 2,
                     .k_dim = 16,
                     .v_dim = 16,
                     .dtype = c.dtype,
                     .block_tokens = c.block_tokens,
                     .page_tokens = c.page_tokens});
  }
}

TEST(AttentionCudaTest, Windows) {
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kInt8}) {
    for (const std::int32_t window : {1, 31, 64, 256, 257, 300}) {
      if (dtype == KvDtype::kInt8 && window % 2 == 0) continue;
      ExpectReference({.sequences = {{1, 600}, {1, 20}, {5, 255}, {40, 480}},
                       .kv_heads = 1,
                       .group = 2,
                       .k_dim = 16,
                       .v_dim = 16,
                       .dtype = dtype,
                       .window_tokens = window,
                       .page_tokens = 8});
    }
  }
}

TEST(AttentionCudaTest, DecodeAndPromptsInOneBatch) {
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kInt8}) {
    ExpectReference({.sequences = {{1, 513}, {0, 7}, {40, 0}, {1, 0}, {3, 254}, {19, 300}, {1, 99}},
                     .kv_heads = 2,
                     .group = 4,
                     .k_dim = 32,
                     .v_dim = 32,
                     .dtype = dtype});
  }
}

// Few prompt rows and a long context: a block per partition.
TEST(AttentionCudaTest, SplitPrompts) {
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kInt8}) {
    const CudaBatchShape shape = {.sequences = {{20, 700}, {18, 100}},
                                  .kv_heads = 1,
                                  .k_dim = 16,
                                  .v_dim = 16,
                                  .dtype = dtype,
                                  .window_tokens = 520};
    CudaBatch batch(shape, 3);
    EXPECT_GT(AttentionScratchBytesCuda(batch.kv(), 1), std::size_t{38 * 2 * 18 * 4});
    ExpectReference(batch, shape);
  }
}

// Enough tiles to fill a GPU: they walk their partitions.
TEST(AttentionCudaTest, WalkedPrompts) {
  CudaBatchShape shape = {.sequences = {{kLarge ? 300 : 65, 260}},
                          .kv_heads = kLarge ? 60 : 140,
                          .group = 1,
                          .k_dim = 8,
                          .v_dim = 8,
                          .own_pool_only = true};
  CudaBatch batch(shape, 4);
  EXPECT_LT(AttentionScratchBytesCuda(batch.kv(), shape.kv_heads),
            std::size_t{1} * 300 * 140 * 2 * 10 * 4);
  ExpectReference(batch, shape, kLarge);
}

// A key or value that is no number touches only the rows that see it.
void ExpectSpoiltKeysToStay(KvDtype dtype, bool is_k, std::int32_t rows) {
  const CudaBatchShape shape = {.sequences = {{rows, 250}},
                                .kv_heads = 1,
                                .k_dim = 16,
                                .v_dim = 16,
                                .dtype = dtype,
                                .window_tokens = 240};
  CudaBatch batch(shape, 5);
  for (const std::int32_t position : {12, 251}) {
    std::byte* const page = batch.HostPage(0, 0, position / 32);
    const auto in_page = static_cast<std::size_t>(position % 32);
    if (dtype == KvDtype::kInt8) {  // A NaN is one by its scale.
      std::memset(batch.ScaleIn(page, in_page, is_k), 0xff, ScaleBytes(dtype));
    } else {
      std::memset(batch.RowIn(page, in_page, is_k), 0xff, batch.layout().k_row_bytes());
    }
  }
  batch.UploadPages();
  ExpectReference(batch, shape);
}

TEST(AttentionCudaTest, SpoiltKeysStayWithThoseWhoSeeThem) {
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kInt8}) {
    for (const bool is_k : {false, true}) {
      for (const std::int32_t rows : {3, 40}) ExpectSpoiltKeysToStay(dtype, is_k, rows);
    }
  }
}

CudaBatchShape RandomShape(std::mt19937& random) {
  const auto pick = [&](std::initializer_list<std::int32_t> of) {
    return of.begin()[random() % of.size()];
  };
  const auto below = [&](int n) {
    return static_cast<std::int32_t>(random() % static_cast<unsigned>(n));
  };
  CudaBatchShape shape;
  shape.kv_heads = 1 + below(kLarge ? 8 : 2);
  shape.group = pick({1, 1, 2, 3, 4, 5, 6, 8, 12, 16});
  shape.k_dim = 8 * (1 + below(kLarge ? 32 : 4));
  shape.v_dim = 8 * (1 + below(kLarge ? 32 : 4));
  if (below(2) == 0) shape.k_dim = shape.v_dim = kLarge ? 128 : 32;
  shape.dtype = kKvDtypes[below(static_cast<int>(std::ssize(kKvDtypes)))];
  if (below(3) == 0) shape.window_tokens = 1 + below(kLarge ? 2000 : 400);
  shape.page_tokens = pick({8, 16, 32, 64});
  shape.block_tokens = shape.page_tokens * pick({1, 2, 4});
  const int sequences = 1 + below(kLarge ? 12 : 3);
  for (int i = 0; i < sequences; ++i) {
    const std::int32_t rows = pick({1, 1, 1, 2, 1 + below(kLarge ? 600 : 40)});
    shape.sequences.push_back({rows, pick({0, 254, 511, below(kLarge ? 6000 : 600)})});
  }
  return shape;
}

TEST(AttentionCudaTest, RandomBatches) {
  for (std::uint32_t seed = 0; seed < (kLarge ? 200 : 16); ++seed) {
    const RunningSeed running(seed);
    std::mt19937 random(seed);
    ExpectReference(RandomShape(random), seed);
    if (HasFailure()) break;
  }
}

// The shapes that models have.
TEST(AttentionCudaTest, LargeBatches) {
  if (!kLarge) GTEST_SKIP() << "too large for an emulated GPU";
  CudaBatchShape shape = {.kv_heads = 8, .group = 4, .k_dim = 128, .v_dim = 128};
  for (std::int32_t i = 0; i < 32; ++i) shape.sequences.push_back({1, 97 * i * i % 9000});
  ExpectReference(shape);
  ExpectReference(
      {.sequences = {{1000, 3000}}, .kv_heads = 8, .group = 4, .k_dim = 128, .v_dim = 128});
  ExpectReference({.sequences = {{2048, 0}, {1, 2000}, {1, 8191}},
                   .kv_heads = 8,
                   .group = 8,
                   .k_dim = 128,
                   .v_dim = 128,
                   .dtype = KvDtype::kBF16});
  ExpectReference({.sequences = {{1, 70000}}, .kv_heads = 2, .group = 7, .k_dim = 64, .v_dim = 64});
  shape.dtype = KvDtype::kInt8;
  ExpectReference(shape);
  ExpectReference({.sequences = {{1000, 3000}, {1, 8191}},
                   .kv_heads = 8,
                   .group = 8,
                   .k_dim = 128,
                   .v_dim = 128,
                   .dtype = KvDtype::kInt8});
}

}  // namespace
}  // namespace penstock::kernels
