// SPDX-License-Identifier: Apache-2.0
#include "base/device_name.h"

#include <gtest/gtest.h>

namespace penstock {
namespace {

TEST(DeviceNameTest, NamesGpus) {
  struct Case {
    std::string_view device;
    std::optional<int> want;
  };
  for (const Case& c : {Case{"cuda", 0}, Case{"cuda:0", 0}, Case{"cuda:7", 7}, Case{"cuda:63", 63},
                        Case{"cuda:64", {}}, Case{"cuda:", {}}, Case{"cuda:-1", {}},
                        Case{"cuda:1x", {}}, Case{"cuda1", {}}, Case{"cuda:99999999999", {}},
                        Case{"cpu", {}}, Case{"paced", {}}, Case{"", {}}, Case{"CUDA", {}}}) {
    EXPECT_EQ(GpuOf(c.device), c.want) << c.device;
  }
  for (const int gpu : {0, 1, 63}) EXPECT_EQ(GpuOf(DeviceOfGpu(gpu)), gpu);
}

}  // namespace
}  // namespace penstock
