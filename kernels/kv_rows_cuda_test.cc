// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv_rows_cuda.h"

#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <limits>
#include <random>
#include <vector>

#include "base/seed_testing.h"
#include "kernels/elementwise_targets.h"
#include "kernels/kv_batch_cuda_testing.h"

namespace penstock::kernels {
namespace {

struct Case {
  CudaBatchShape shape;
  RopePairs pairs = RopePairs::kHalves;
  std::int32_t rotary_dim = 0;
  bool q_norm = false;
  bool k_norm = false;
  float size = 4;  // Of the largest elements.
  float odd = 0;   // Where it is not 0, an element of K and one of V are that.
};

std::size_t Count(std::int32_t a, std::int32_t b, std::int32_t c) {
  return static_cast<std::size_t>(a) * static_cast<std::size_t>(b) * static_cast<std::size_t>(c);
}

// What PrepareAndStoreCuda changes, as kernels/elementwise.h has it.
struct Rows {
  std::vector<float> q, k, v;
};

void Prepare(const Case& c, const std::vector<float>& q_norm, const std::vector<float>& k_norm,
             const std::vector<float>& cos, const std::vector<float>& sin, CudaBatch& batch,
             Rows& rows) {
  const ElementwiseTarget& scalar = kElementwiseScalar;
  const CudaBatchShape& shape = c.shape;
  const std::int32_t qo_heads = shape.kv_heads * shape.group;
  for (std::size_t i = 0; i < batch.sequences().size(); ++i) {
    const CudaSequence& s = batch.sequences()[i];
    for (std::int32_t r = s.row_begin; r < s.row_begin + s.rows; ++r) {
      const std::size_t turn = Count(r, c.rotary_dim / 2, 1);
      const auto prepare = [&](float* head, bool norm, const std::vector<float>& w) {
        if (norm) scalar.rms_norm(head, w.data(), shape.k_dim, 1e-5f, head);
        if (c.rotary_dim > 0) {
          scalar.rope(c.pairs, cos.data() + turn, sin.data() + turn, c.rotary_dim, head);
        }
      };
      for (std::int32_t h = 0; h < qo_heads; ++h) {
        prepare(&rows.q[Count(r * qo_heads + h, shape.k_dim, 1)], c.q_norm, q_norm);
      }
      const std::int32_t position = s.position + r - s.row_begin;
      for (std::int32_t h = 0; h < shape.kv_heads; ++h) {
        float* const k = &rows.k[Count(r * shape.kv_heads + h, shape.k_dim, 1)];
        prepare(k, c.k_norm, k_norm);
        std::byte* const page = batch.HostPage(i, h, position / shape.page_tokens);
        const auto in_page = static_cast<std::size_t>(position % shape.page_tokens);
        NarrowRow(shape.dtype, k, shape.k_dim, batch.RowIn(page, in_page, true),
                  batch.ScaleIn(page, in_page, true));
        NarrowRow(shape.dtype, &rows.v[Count(r * shape.kv_heads + h, shape.v_dim, 1)], shape.v_dim,
                  batch.RowIn(page, in_page, false), batch.ScaleIn(page, in_page, false));
      }
    }
  }
}

void ExpectReference(const Case& c, std::uint32_t seed = 1) {
  SCOPED_TRACE(c.shape.ToString() + " rotary_dim=" + std::to_string(c.rotary_dim));
  const CudaBatchShape& shape = c.shape;
  CudaBatch batch(shape, seed);
  const std::int32_t qo_heads = shape.kv_heads * shape.group;
  Rows rows = {batch.Random(Count(batch.rows(), qo_heads, shape.k_dim), c.size),
               batch.Random(Count(batch.rows(), shape.kv_heads, shape.k_dim), c.size),
               batch.Random(Count(batch.rows(), shape.kv_heads, shape.v_dim), c.size)};
  if (c.odd != 0) rows.k[rows.k.size() / 2] = rows.v[rows.v.size() / 2] = c.odd;
  const Rows before = rows;
  const std::vector<float> q_norm = batch.Random(Count(shape.k_dim, 1, 1), 2);
  const std::vector<float> k_norm = batch.Random(Count(shape.k_dim, 1, 1), 2);
  const std::vector<float> cos = batch.Random(Count(batch.rows(), c.rotary_dim / 2, 1));
  const std::vector<float> sin = batch.Random(Count(batch.rows(), c.rotary_dim / 2, 1));
  const std::vector<std::byte> own = batch.HostPool(0);
  Prepare(c, q_norm, k_norm, cos, sin, batch, rows);

  DeviceBuffer<float> q(before.q), k(before.k);
  const DeviceBuffer<float> v(before.v), device_q_norm(q_norm), device_k_norm(k_norm);
  const DeviceBuffer<float> device_cos(cos), device_sin(sin);
  const bool turns = c.rotary_dim > 0;
  const CudaPrepare qkv = {.q = q.data(),
                           .k = k.data(),
                           .v = v.data(),
                           .qo_heads = qo_heads,
                           .q_norm = c.q_norm ? device_q_norm.data() : nullptr,
                           .k_norm = c.k_norm ? device_k_norm.data() : nullptr,
                           .norm_eps = 1e-5f,
                           .pairs = c.pairs,
                           .rotary_dim = c.rotary_dim,
                           .cos = turns ? device_cos.data() : nullptr,
                           .sin = turns ? device_sin.data() : nullptr};
  ForEachSchedule([&] {
    q.Set(before.q);
    k.Set(before.k);
    batch.SetDevicePool(0, own);
    ASSERT_TRUE(Ran(PrepareAndStoreCuda(qkv, batch.kv(), nullptr)));
    ExpectSameBits(rows.q, q.Get());
    ExpectSameBits(rows.k, k.Get());
    // All of the pool: nothing else may have been written.
    EXPECT_TRUE(batch.DownloadPool(0) == batch.HostPool(0));
  });
}

CudaBatchShape Shape(KvDtype dtype, std::int32_t k_dim, std::int32_t v_dim) {
  return {.sequences = {{1, 33}, {0, 5}, {5, 30}, {1, 0}},
          .group = 3,
          .k_dim = k_dim,
          .v_dim = v_dim,
          .dtype = dtype,
          .page_tokens = 8,
          .own_pool_only = true};
}

TEST(KvRowsCudaTest, DtypesDimsAndRotations) {
  for (const KvDtype dtype : kKvDtypes) {
    for (const RopePairs pairs : {RopePairs::kHalves, RopePairs::kAdjacent}) {
      ExpectReference({.shape = Shape(dtype, 64, 64), .pairs = pairs, .rotary_dim = 64});
      ExpectReference({.shape = Shape(dtype, 40, 72), .pairs = pairs, .rotary_dim = 24});
    }
    ExpectReference({.shape = Shape(dtype, 8, 1024)});
  }
  ExpectReference({.shape = Shape(KvDtype::kBF16, 1024, 8), .rotary_dim = 1024});
}

TEST(KvRowsCudaTest, Norms) {
  for (const std::int32_t k_dim : {8, 24, 64, 128}) {
    ExpectReference({.shape = Shape(KvDtype::kF16, k_dim, 16), .q_norm = true, .k_norm = true});
    ExpectReference({.shape = Shape(KvDtype::kF16, k_dim, 16), .rotary_dim = 8, .q_norm = true});
    ExpectReference({.shape = Shape(KvDtype::kF16, k_dim, 16), .rotary_dim = 8, .k_norm = true});
  }
}

// Beyond the largest of F16 and of int8, and where they have no normal numbers or none.
TEST(KvRowsCudaTest, Magnitudes) {
  for (const float size : {1e9f, 1e6f, 1e-4f, 1e-7f, 1e-30f, 0.0f}) {
    for (const KvDtype dtype : kKvDtypes) {
      ExpectReference({.shape = Shape(dtype, 64, 64), .rotary_dim = 64, .size = size});
    }
  }
}

// Which spoil their own row alone.
TEST(KvRowsCudaTest, WhatIsNoNumberInInt8) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float odd : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(), 3e38f}) {
    ExpectReference({.shape = Shape(KvDtype::kInt8, 40, 72), .odd = odd});
  }
}

TEST(KvRowsCudaTest, RandomBatches) {
  for (std::uint32_t seed = 0; seed < 14; ++seed) {
    const RunningSeed running(seed);
    std::mt19937 random(seed);
    const auto below = [&](unsigned n) { return static_cast<std::int32_t>(random() % n); };
    Case c;
    c.shape = {.kv_heads = 1 + below(9),
               .group = 1 + below(9),
               .k_dim = 8 * (1 + below(20)),
               .v_dim = 8 * (1 + below(20)),
               .dtype = kKvDtypes[below(std::size(kKvDtypes))],
               .window_tokens = below(100),
               .block_tokens = 64,
               .page_tokens = 8 << below(4),
               .own_pool_only = true};
    for (int i = 1 + below(4); i > 0; --i) c.shape.sequences.push_back({below(20), below(300)});
    c.pairs = static_cast<RopePairs>(below(2));
    c.rotary_dim = 2 * below(static_cast<unsigned>(c.shape.k_dim / 2 + 1));
    c.q_norm = below(2) == 0;
    c.k_norm = below(2) == 0;
    ExpectReference(c, seed);
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace penstock::kernels
