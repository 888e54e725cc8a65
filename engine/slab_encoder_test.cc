// SPDX-License-Identifier: Apache-2.0
#include "engine/slab_encoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <random>
#include <vector>

#include "device/cpu_device.h"
#include "device/device_testing.h"
#include "engine/kv_pool.h"
#include "kernels/elementwise.h"
#include "kernels/kv_encoding.h"

namespace penstock::engine {
namespace {

constexpr kernels::KvEncoding kK8v4 = {{kernels::KvQuantWay::kInt8Rows, 8},
                                       {kernels::KvQuantWay::kGroups, 4}};

// A pool on a device of its own; what is computed there is by the time the call returns.
struct FarPool {
  explicit FarPool(KvDtype dtype = KvDtype::kF16, std::int32_t block_tokens = 16) {
    const KvGroup group = {
        .cache_layers = 2, .kv_heads = 2, .k_dim = 40, .v_dim = 64, .dtype = dtype};
    pool = *KvPool::Make(device, {.groups = {group}, .layers = {}},
                         {.pool_bytes = std::size_t{1} << 20,
                          .block_tokens = block_tokens,
                          .page_tokens = std::min(block_tokens, 8),
                          .shared = true});
    pool->set_writer(*work);
  }
  ~FarPool() { pool = nullptr; }  // Its copies end before what they copy from.
  // A slab of random numbers.
  SlabRef Fill(std::uint32_t seed) {
    std::mt19937 random(seed);
    const SlabRef slab = *pool->Allocate(0);
    const PageLayout& layout = pool->layout(0);
    std::vector<float> values(layout.block_bytes() / BytesPerElement(layout.group.dtype));
    for (float& x : values) x = static_cast<float>(random() % 2001) / 1000 - 1;
    kernels::NarrowRow(layout.group.dtype, values.data(), static_cast<std::int32_t>(values.size()),
                       At(slab), nullptr);
    return slab;
  }
  std::byte* At(SlabRef slab) { return pool->pools(0).base[0] + slab.index * pool->slab_bytes(0); }
  std::vector<std::byte> Want(SlabRef slab) {
    std::vector<std::byte> want(kernels::EncodedBlockBytes(kK8v4, pool->layout(0)));
    kernels::EncodeBlock(kK8v4, pool->layout(0), At(slab), want.data());
    return want;
  }
  void ExpectEncoded(const SlabEncoder::Bytes& got, SlabRef slab) {
    ASSERT_NE(got, nullptr);
    const std::vector<std::byte> want = Want(slab);
    EXPECT_EQ(std::memcmp(got.get(), want.data(), want.size()), 0);
  }

  const std::unique_ptr<CpuDevice> cpu = *CpuDevice::Make({.threads = 1, .cpus = {}});
  const std::unique_ptr<kernels::Ops> ops = kernels::MakeCpuOps(*cpu);
  FarDevice device;
  const std::unique_ptr<Stream> work = device.NewStream();
  std::unique_ptr<KvPool> pool;
};

TEST(SlabEncoderTest, TheHostGetsWhatTheBlockBecomes) {
  FarPool far;
  far.pool->set_encoder(far.device, *far.ops);
  const SlabRef first = far.Fill(1), second = far.Fill(2);
  const SlabEncoder::Bytes a = far.pool->Encode(0, first, kK8v4);
  const SlabEncoder::Bytes b = far.pool->Encode(0, second, kK8v4);
  far.pool->WaitForCopy(far.pool->last_copy());
  far.ExpectEncoded(a, first);
  far.ExpectEncoded(b, second);
  EXPECT_NE(far.Want(first), far.Want(second));
  far.ExpectEncoded(far.pool->EncodeNow(0, first, kK8v4), first);
}

TEST(SlabEncoderTest, AsManyBlocksAreOnTheirWayAsThereIsRoomFor) {
  FarPool far;
  far.pool->set_encoder(far.device, *far.ops);
  const SlabRef slab = far.Fill(3);
  std::promise<void> go;
  far.pool->AfterCopies([gone = go.get_future().share()] { gone.wait(); });
  std::vector<SlabEncoder::Bytes> made;
  while (made.size() < 100) {
    SlabEncoder::Bytes one = far.pool->Encode(0, slab, kK8v4);
    if (one == nullptr) break;
    made.push_back(std::move(one));
  }
  EXPECT_EQ(made.size(), 8u);
  EXPECT_EQ(far.pool->EncodeNow(0, slab, kK8v4), nullptr);
  go.set_value();
  far.pool->WaitForCopy(far.pool->last_copy());
  for (const SlabEncoder::Bytes& one : made) far.ExpectEncoded(one, slab);
  far.ExpectEncoded(far.pool->EncodeNow(0, slab, kK8v4), slab);
  const SlabEncoder::Bytes again = far.pool->Encode(0, slab, kK8v4);
  far.pool->WaitForCopy(far.pool->last_copy());
  far.ExpectEncoded(again, slab);
}

TEST(SlabEncoderTest, WhatNoDeviceEncodesIsLeftToTheHost) {
  FarPool none;
  EXPECT_EQ(none.pool->Encode(0, none.Fill(4), kK8v4), nullptr);
  FarPool int8(KvDtype::kInt8);
  int8.pool->set_encoder(int8.device, *int8.ops);
  EXPECT_EQ(int8.pool->Encode(0, *int8.pool->Allocate(0), kK8v4), nullptr);
  FarPool few(KvDtype::kF16, 4);
  few.pool->set_encoder(few.device, *few.ops);
  EXPECT_EQ(few.pool->Encode(0, few.Fill(5), kK8v4), nullptr);
}

}  // namespace
}  // namespace penstock::engine
