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
#include "kernels/kv_split.h"

namespace penstock::engine {
namespace {

constexpr kernels::KvEncoding kLossless = {.lossless = true};
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
  std::vector<std::byte> Want(SlabRef slab, const kernels::KvEncoding& encoding = kK8v4) {
    std::vector<std::byte> want(kernels::EncodedBlockBytes(encoding, pool->layout(0)));
    kernels::EncodeBlock(encoding, pool->layout(0), At(slab), want.data());
    return want;
  }
  void ExpectEncoded(const SlabEncoder::Bytes& got, SlabRef slab,
                     const kernels::KvEncoding& encoding = kK8v4) {
    ASSERT_NE(got, nullptr);
    const std::vector<std::byte> want = Want(slab, encoding);
    if (encoding.lossless) return ExpectSplit(got.get(), want.data());
    EXPECT_EQ(std::memcmp(got.get(), want.data(), want.size()), 0);
  }
  // As kernels/kv_split.h has it: behind what a unit has in its room lies anything.
  void ExpectSplit(const std::byte* got, const std::byte* want) {
    const kernels::KvSplitBlock block(pool->layout(0));
    EXPECT_EQ(std::memcmp(got, want, block.TailAt(0, 0, true)), 0);
    for (std::size_t unit = 0; unit < 2 * block.layers * block.heads; ++unit) {
      const bool keys = unit % 2 == 0;
      const std::size_t layer = unit / 2 / block.heads, head = unit / 2 % block.heads;
      std::uint32_t escapes = 0;
      std::memcpy(&escapes, want + block.CountAt(layer, head, keys), sizeof(escapes));
      ASSERT_NE(escapes, kernels::kKvSplitNone);
      const std::size_t at = block.TailAt(layer, head, keys), room = 1 + block.DimOf(keys);
      const std::size_t firsts = want[at] == kernels::kKvByColumn ? room : 1;
      EXPECT_EQ(std::memcmp(got + at, want + at, firsts), 0) << unit;
      EXPECT_EQ(std::memcmp(got + at + room, want + at + room, escapes), 0) << unit;
    }
  }

  const std::unique_ptr<CpuDevice> cpu = *CpuDevice::Make({.threads = 1, .cpus = {}});
  const std::unique_ptr<kernels::Ops> ops = kernels::MakeCpuOps(*cpu);
  FarDevice device;
  const std::unique_ptr<Stream> work = device.NewStream();
  std::unique_ptr<KvPool> pool;
};

TEST(SlabEncoderTest, TheHostGetsWhatTheBlockBecomes) {
  FarPool far;
  ASSERT_TRUE(far.pool->MakeEncoder(far.device, *far.ops).ok());
  const SlabRef first = far.Fill(1), second = far.Fill(2);
  const SlabEncoder::Bytes a = far.pool->Encode(0, first, kK8v4);
  const SlabEncoder::Bytes b = far.pool->Encode(0, second, kK8v4);
  far.pool->WaitForCopy(far.pool->last_copy());
  far.ExpectEncoded(a, first);
  far.ExpectEncoded(b, second);
  EXPECT_NE(far.Want(first), far.Want(second));
  far.ExpectEncoded(far.pool->EncodeNow(0, first, kK8v4), first);
}

TEST(SlabEncoderTest, LosslessBlocksNeedTheLargestRooms) {
  for (const KvDtype dtype : {KvDtype::kF16, KvDtype::kBF16, KvDtype::kF32}) {
    FarPool far(dtype);
    ASSERT_TRUE(far.pool->MakeEncoder(far.device, *far.ops).ok());
    std::vector<SlabRef> slabs;
    std::vector<SlabEncoder::Bytes> made;
    for (std::uint32_t i = 0; i < 8; ++i) {
      slabs.push_back(far.Fill(i));
      made.push_back(far.pool->Encode(0, slabs.back(), i % 2 == 0 ? kLossless : kK8v4));
    }
    far.pool->WaitForCopy(far.pool->last_copy());
    for (std::size_t i = 0; i < 8; ++i) {
      far.ExpectEncoded(made[i], slabs[i], i % 2 == 0 ? kLossless : kK8v4);
    }
  }
}

// One behind another, through one room, in the order in which they are asked for.
TEST(SlabEncoderTest, BlocksAreDecodedIntoTheirSlabs) {
  FarPool far;
  ASSERT_FALSE(far.pool->decodes());
  ASSERT_TRUE(far.pool->MakeEncoder(far.device, *far.ops).ok());
  ASSERT_TRUE(far.pool->decodes());
  const PageLayout& layout = far.pool->layout(0);
  const std::size_t bytes = 2 * kernels::KvPlanes(kK8v4, layout).layer_bytes();
  std::vector<SlabRef> slabs;
  std::vector<std::vector<std::byte>> want;
  for (std::uint32_t i = 0; i < 5; ++i) {
    std::vector<std::byte> encoded = far.Want(far.Fill(100 + i));
    encoded.resize(bytes);  // Without what tells of faults.
    kernels::DecodeBlock(kK8v4, layout, encoded, want.emplace_back(layout.block_bytes()).data());
    slabs.push_back(far.Fill(i));
    const std::uint64_t before = far.pool->last_copy();
    far.pool->Decode(0, slabs.back(),
                     std::make_shared<const kernels::EncodedBlock>(
                         kernels::EncodedBlock{.encoding = kK8v4, .bytes = std::move(encoded)}));
    EXPECT_EQ(far.pool->last_copy(), before + 1);
  }
  far.pool->WaitForCopy(far.pool->last_copy());
  for (std::size_t i = 0; i < slabs.size(); ++i) {
    EXPECT_EQ(std::memcmp(far.At(slabs[i]), want[i].data(), want[i].size()), 0) << i;
  }
}

TEST(SlabEncoderTest, RoomsAreHadAtOnceAndCounted) {
  FarPool far;
  const PageLayout& layout = far.pool->layout(0);
  const std::size_t bytes = SlabEncoder::RoomBytes({&layout, 1});
  EXPECT_GE(bytes, 8 * kernels::EncodedBlockBytesMax(layout) + kernels::EncodedBytesMax(layout));
  EXPECT_LE(bytes,
            8 * kernels::EncodedBlockBytesMax(layout) + kernels::EncodedBytesMax(layout) + 9 * 256);
  const PageLayout int8 = *PageLayout::Make(
      {.cache_layers = 2, .kv_heads = 2, .k_dim = 40, .v_dim = 64, .dtype = KvDtype::kInt8}, 16, 8);
  EXPECT_EQ(SlabEncoder::RoomBytes({&int8, 1}), 0u);
  // A device that cannot give them says so at once, and no later.
  CpuDevice& small = *far.cpu;
  const absl::Status none = [&] {
    class Full final : public Device {
     public:
      explicit Full(Device& of) : of_(of) {}
      std::string_view kind() const override { return "full"; }
      std::string Describe() const override { return "full"; }
      absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(std::size_t, Sharing) override {
        return absl::ResourceExhaustedError("full");
      }
      absl::StatusOr<std::unique_ptr<DeviceMemory>> AllocateHost(std::size_t n) override {
        return of_.AllocateHost(n);
      }
      std::unique_ptr<Stream> NewStream() override { return of_.NewStream(); }
      void ForEachOnHost(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) override {
        of_.ForEachOnHost(items, work);
      }

     private:
      Device& of_;
    } full(small);
    return far.pool->MakeEncoder(full, *far.ops);
  }();
  EXPECT_EQ(none.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(far.pool->decodes());
}

TEST(SlabEncoderTest, AsManyBlocksAreOnTheirWayAsThereIsRoomFor) {
  FarPool far;
  ASSERT_TRUE(far.pool->MakeEncoder(far.device, *far.ops).ok());
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
  ASSERT_TRUE(int8.pool->MakeEncoder(int8.device, *int8.ops).ok());
  EXPECT_EQ(int8.pool->Encode(0, *int8.pool->Allocate(0), kK8v4), nullptr);
  FarPool few(KvDtype::kF16, 4);
  ASSERT_TRUE(few.pool->MakeEncoder(few.device, *few.ops).ok());
  EXPECT_EQ(few.pool->Encode(0, few.Fill(5), kK8v4), nullptr);
}

}  // namespace
}  // namespace penstock::engine
