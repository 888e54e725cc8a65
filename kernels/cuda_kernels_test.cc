// SPDX-License-Identifier: Apache-2.0
// Kernels that no operation of a forward pass uses, through the plug-in's table, over the stand-in for
// cudart: what they touch is device memory or pinned.
#include "kernels/cuda_kernels.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "device/cuda_device.h"
#include "device/cuda_standin.h"
#include "kernels/crc32c.h"
#include "kernels/kv_encoding.h"
#include "kernels/kv_split.h"
#include "kernels/ops.h"

namespace penstock::kernels {
namespace {

TEST(CudaKernelsTest, CopiesUnits) {
  cuda_standin::Reset({});
  const auto device = CudaDevice::Make(*penstock_cuda_plugin(), {.threads = 1}).value();
  CudaStream stream(device->plugin(), device->gpu());
  std::vector<std::byte> bytes(5000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * i / 7);
  const auto from = device->Allocate(bytes.size()).value();
  const auto to = device->Allocate(bytes.size()).value();
  const auto pinned = device->AllocateHost(4096).value();
  stream.Copy(from->data(), bytes.data(), bytes.size());
  auto* const runs = reinterpret_cast<CopyRun*>(pinned->data());
  auto* const units = reinterpret_cast<CopyUnit*>(pinned->data() + 1024);
  auto* const crcs = reinterpret_cast<std::uint32_t*>(pinned->data() + 2048);
  runs[0] = {from->data() + 4096, to->data(), 904};
  runs[1] = {from->data(), to->data() + 904, 4096};
  units[0] = {0, 2};
  runs[2] = {from->data(), nullptr, 100};
  units[1] = {2, 1};
  stream.Expect(device->plugin().kernels->copy_units(units, 2, runs, crcs, stream.handle()),
                "copy_units");
  std::vector<std::byte> got(bytes.size());
  stream.Copy(got.data(), to->data(), got.size());
  ASSERT_TRUE(stream.Synchronize().ok());
  std::vector<std::byte> want(bytes.begin() + 4096, bytes.end());
  want.insert(want.end(), bytes.begin(), bytes.begin() + 4096);
  EXPECT_TRUE(got == want);
  EXPECT_EQ(crcs[0], Crc32c(0, want.data(), want.size()));
  EXPECT_EQ(crcs[1], Crc32c(0, bytes.data(), 100));
}

TEST(CudaKernelsTest, OpsEncodeAndDecodeBlocks) {
  cuda_standin::Reset({});
  const auto device = CudaDevice::Make(*penstock_cuda_plugin(), {.threads = 1}).value();
  const std::unique_ptr<Ops> ops = MakeCudaOps(*device, Numerics::kExact).value();
  const std::unique_ptr<Stream> stream = device->NewStream();
  const PageLayout layout = *PageLayout::Make(
      {.cache_layers = 2, .kv_heads = 2, .k_dim = 24, .v_dim = 32, .dtype = KvDtype::kF16}, 16, 8);
  std::vector<std::byte> slab(layout.slab_bytes());
  for (std::size_t i = 0; i < layout.block_bytes() / 2; ++i) {
    const auto bits = static_cast<std::uint16_t>(0x3800u | (i * i % 1024) | (i % 3) << 15);
    std::memcpy(&slab[2 * i], &bits, sizeof(bits));
  }
  const auto on_device = device->Allocate(slab.size()).value();
  const auto room = device->Allocate(EncodedBytesMax(layout)).value();
  ops->stream().Copy(on_device->data(), slab.data(), slab.size());
  constexpr KvEncoding kLossless = {.lossless = true};
  for (const KvEncoding& encoding : {KvEncoding(), kLossless}) {
    SCOPED_TRACE(encoding.lossless);
    std::vector<std::byte> want(EncodedBlockBytes(encoding, layout));
    std::vector<std::byte> got(want.size());
    EncodeBlock(encoding, layout, slab.data(), want.data());
    ops->EncodeBlock(encoding, layout, on_device->data(), room->data());
    ops->stream().Copy(got.data(), room->data(), got.size());
    ASSERT_TRUE(ops->stream().Synchronize().ok());
    // All that is certain: rest and codes; of int8 all.
    const KvSplitBlock split(layout);
    const std::size_t sure = encoding.lossless ? split.layers * split.layer_bytes() : want.size();
    EXPECT_EQ(std::memcmp(got.data(), want.data(), sure), 0);
  }
  // The layers of int8, and raw units, back to a slab of their own, on another stream.
  const auto made = device->Allocate(slab.size()).value();
  const auto decode = [&](const EncodedBlock& encoded) {
    std::vector<std::byte> want(slab.size());
    std::vector<std::byte> got(slab.size());
    DecodeBlock(encoded.encoding, layout, encoded.bytes, want.data());
    stream->Copy(made->data(), got.data(), got.size());
    stream->Copy(room->data(), encoded.bytes.data(), encoded.bytes.size());
    ops->DecodeBlock(encoded.encoding, layout, {room->data(), encoded.bytes.size()}, made->data(),
                     *stream);
    stream->Copy(got.data(), made->data(), got.size());
    ASSERT_TRUE(stream->Synchronize().ok());
    EXPECT_EQ(got, want);
  };
  EncodedBlock int8 = {.encoding = {}, .bytes = {}};
  int8.bytes.assign(layout.group.cache_layers * KvPlanes({}, layout).layer_bytes(), std::byte{5});
  decode(int8);
  EncodedBlock raw = {.encoding = kLossless, .bytes = {slab.begin(), slab.end()}};
  std::vector<KvJoinUnit> table(8);
  for (std::size_t i = 0; i < table.size(); ++i) table[i].rest = 3 + 256 * i;
  const auto* const entries = reinterpret_cast<const std::byte*>(table.data());
  raw.bytes.insert(raw.bytes.end(), entries, entries + KvJoinTableBytes(layout));
  decode(raw);
}

}  // namespace
}  // namespace penstock::kernels
