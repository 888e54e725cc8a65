// SPDX-License-Identifier: Apache-2.0
// Attention over slabs of several pools gives the bits of the same slabs in one.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cpu_device.h"
#include "kernels/ops.h"

namespace penstock::kernels {
namespace {

constexpr std::int32_t kBlockTokens = 8;
constexpr std::int32_t kHeads = 4;  // Of queries; half as many of keys.
constexpr std::size_t kPage = 4096;

SlabRef Ref(std::uint32_t pool, std::uint32_t index) {
  SlabRef ref;
  ref.pool = pool & 0xffu;
  ref.index = index & 0xffffffu;
  return ref;
}

class SlabPoolsTest : public testing::TestWithParam<int> {
 protected:
  // Slabs of 24 KiB: their stride is not a mapped pool's.
  const PageLayout layout_ = *PageLayout::Make(
      {.cache_layers = 3, .kv_heads = 2, .k_dim = 128, .v_dim = 128, .dtype = KvDtype::kF16},
      kBlockTokens, kBlockTokens);
  const std::unique_ptr<CpuDevice> device_ = *CpuDevice::Make({.threads = GetParam(), .cpus = {}});
  const std::unique_ptr<Ops> ops_ = MakeCpuOps(*device_);

  std::vector<float> Attend(const SlabPools& pools, std::span<const SequenceRows> sequences,
                            std::int32_t rows) {
    std::mt19937 random(5);
    std::vector<float> q(static_cast<std::size_t>(rows * kHeads * layout_.group.k_dim));
    std::normal_distribution<float> normal;
    for (float& x : q) x = normal(random);
    std::vector<float> out(static_cast<std::size_t>(rows * kHeads * layout_.group.v_dim));
    Activations to;
    to.cols = kHeads * layout_.group.v_dim;
    to.f32 = out.data();
    ops_->Attention(q.data(), kHeads, 0.1f, {&layout_, pools, 1, sequences}, to);
    return out;
  }
};

TEST_P(SlabPoolsTest, AreReadAsOne) {
  const std::size_t slab_bytes = layout_.slab_bytes();
  ASSERT_NE(slab_bytes, kPage);
  constexpr std::size_t kBlocks = 40;
  std::mt19937 random(3);
  std::vector<std::byte> own(kBlocks * slab_bytes);
  for (std::size_t i = 0; i + 1 < own.size(); i += 2) {
    // Halves of moderate size.
    const auto half =
        static_cast<std::uint16_t>(0x2C00u + random() % 0x1000u + (random() % 2 << 15));
    std::memcpy(own.data() + i, &half, sizeof(half));
  }
  std::byte* const own_base = own.data();
  const std::vector<std::size_t> own_stride = {slab_bytes};
  // The same blocks, in mapped pools wherever a page begins; what is left in the own one is there.
  std::vector<std::byte> first(kBlocks * (slab_bytes + kPage) + 5 * kPage);
  std::vector<std::byte> third(first.size());
  std::vector<std::byte*> bases = {own_base, first.data(), nullptr, third.data()};
  const std::vector<std::size_t> strides = {slab_bytes, kPage, kPage, kPage};
  std::vector<SlabRef> plain;
  std::vector<SlabRef> mixed;
  for (std::uint32_t b = 0; b < kBlocks; ++b) {
    plain.push_back(Ref(0, b));
    const std::uint32_t pool = b % 3 == 0 ? 0 : b % 3 == 1 ? 1 : 3;
    if (pool == 0) {
      mixed.push_back(Ref(0, b));
      continue;
    }
    const std::size_t page = b * (slab_bytes / kPage + 1) + 5;
    std::copy_n(own_base + b * slab_bytes, layout_.block_bytes(), bases[pool] + page * kPage);
    mixed.push_back(Ref(pool, static_cast<std::uint32_t>(page)));
  }
  const SlabPools one = {{&own_base, 1}, own_stride};
  const SlabPools many = {bases, strides};
  for (std::uint32_t b = 0; b < kBlocks; ++b) {
    EXPECT_EQ(std::memcmp(one.At(plain[b]), many.At(mixed[b]), layout_.block_bytes()), 0);
  }
  // A chunk of a prompt, an answer, and one that has let its first blocks go.
  const auto sequences = [](const std::vector<SlabRef>& slabs) {
    const std::span all(slabs);
    return std::vector<SequenceRows>{
        {.row_begin = 0, .rows = 20, .position = 80, .slabs = all},
        {.row_begin = 20, .rows = 1, .position = 319, .slabs = all},
        {.row_begin = 21, .rows = 1, .position = 5, .slabs = all.subspan(7)}};
  };
  const std::vector<float> want = Attend(one, sequences(plain), 22);
  EXPECT_EQ(Attend(many, sequences(mixed), 22), want);
  // It does read them.
  std::fill_n(bases[1] + (1 * (slab_bytes / kPage + 1) + 5) * kPage, layout_.block_bytes(),
              std::byte{0x3C});
  EXPECT_NE(Attend(many, sequences(mixed), 22), want);
}

TEST_P(SlabPoolsTest, MappedOnesAreNeverWritten) {
  std::vector<std::byte> memory(8 * layout_.slab_bytes());
  std::byte* const bases[] = {memory.data(), memory.data()};
  const std::size_t strides[] = {layout_.slab_bytes(), kPage};
  const SlabRef slab = Ref(1, 0);
  const SequenceRows rows = {.rows = 1, .slabs = {&slab, 1}};
  std::vector<float> values(static_cast<std::size_t>(kHeads * layout_.group.k_dim));
  const PrepareQkv qkv = {
      .q = values.data(), .k = values.data(), .v = values.data(), .qo_heads = kHeads};
  EXPECT_DEATH(ops_->PrepareAndStore(qkv, {&layout_, {bases, strides}, 0, {&rows, 1}}),
               "slab.pool");
}

INSTANTIATE_TEST_SUITE_P(Threads, SlabPoolsTest, testing::Values(1, 3));

}  // namespace
}  // namespace penstock::kernels
