// SPDX-License-Identifier: Apache-2.0
// Links of kind nccl whose slots are packed and unpacked by the plug-in's kernel, emulated.
#include <gtest/gtest.h>

#include "transfer/nccl_pair_testing.h"

namespace penstock::transfer {
namespace {

TEST(NcclKernelTest, BytesGoThroughThePluginsKernel) {
  NcclWorld world({}, {}, 1, *penstock_cuda_plugin());
  NcclPair pair(world, std::size_t{1} << 20);
  DeviceRead at_a(world, 0, pair.b, 3, 300001), at_b(world, 1, pair.a, 9, 77777);
  pair.ReadBoth(at_a, at_b);
  EXPECT_TRUE(at_a.ends.at(0).ok()) << at_a.ends[0];
  EXPECT_TRUE(at_b.ends.at(0).ok()) << at_b.ends[0];
  EXPECT_EQ(world.Bytes(0, *at_a.target), at_a.want);
  EXPECT_EQ(world.Bytes(1, *at_b.target), at_b.want);
}

}  // namespace
}  // namespace penstock::transfer
