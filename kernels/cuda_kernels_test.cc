// SPDX-License-Identifier: Apache-2.0
// Kernels that no operation of kernels/ops.h uses, through the plug-in's table, over the stand-in
// for cudart: what they touch is device memory or pinned.
#include "kernels/cuda_kernels.h"

#include <gtest/gtest.h>

#include <vector>

#include "device/cuda_device.h"
#include "device/cuda_standin.h"
#include "kernels/crc32c.h"

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

}  // namespace
}  // namespace penstock::kernels
