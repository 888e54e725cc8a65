// SPDX-License-Identifier: Apache-2.0
#include "base/device_name.h"

#include <gtest/gtest.h>

#include <numeric>

namespace penstock {
namespace {

using Gpus = std::vector<int>;

TEST(DeviceNameTest, NamesGpus) {
  struct Case {
    std::string_view device;
    std::optional<Gpus> want;
  };
  for (const Case& c : {Case{"cuda", Gpus{0}},
                        Case{"cuda:0", Gpus{0}},
                        Case{"cuda:7", Gpus{7}},
                        Case{"cuda:63", Gpus{63}},
                        Case{"cuda:2,0,1", Gpus{2, 0, 1}},
                        Case{"cuda:1,1", Gpus{1, 1}},
                        Case{"cuda:64", {}},
                        Case{"cuda:", {}},
                        Case{"cuda:-1", {}},
                        Case{"cuda:1x", {}},
                        Case{"cuda1", {}},
                        Case{"cuda:99999999999", {}},
                        Case{"cuda:0,", {}},
                        Case{"cuda:,0", {}},
                        Case{"cuda:0,64", {}},
                        Case{"cuda:0:1", {}},
                        Case{"cuda:0, 1", {}},
                        Case{"cuda,1", {}},
                        Case{"cpu", {}},
                        Case{"paced", {}},
                        Case{"", {}},
                        Case{"CUDA", {}}}) {
    EXPECT_EQ(GpusOf(c.device), c.want) << c.device;
  }
  for (const Gpus& gpus : {Gpus{0}, Gpus{1}, Gpus{63}, Gpus{0, 1}, Gpus{3, 2, 1, 0}}) {
    EXPECT_EQ(GpusOf(DeviceOfGpus(gpus)), gpus);
  }
  Gpus all(64);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(GpusOf(DeviceOfGpus(all)), all);
  EXPECT_EQ(GpusOf(DeviceOfGpus(all) + ",0"), std::nullopt) << "more than there are numbers";
}

TEST(DeviceNameTest, GivesEachShardAGpu) {
  EXPECT_EQ(*GpusOfShards("cuda", 4), (Gpus{0, 1, 2, 3}));
  EXPECT_EQ(*GpusOfShards("cuda:5", 1), Gpus{5});
  EXPECT_EQ(*GpusOfShards("cuda:3,1", 2), (Gpus{3, 1}));
  EXPECT_EQ(GpusOfShards("cuda:1", 2).status().message(),
            "device cuda:1 names 1 GPU, and tp is 2: each shard takes one");
  EXPECT_EQ(GpusOfShards("cuda:0,1,2", 2).status().message(),
            "device cuda:0,1,2 names 3 GPUs, and tp is 2: each shard takes one");
  EXPECT_EQ(*GpusOfShards("cuda", 2, 3), (Gpus{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(*GpusOfShards("cuda:3,1", 1, 2), (Gpus{3, 1}));
  EXPECT_EQ(
      GpusOfShards("cuda:0,1", 2, 2).status().message(),
      "device cuda:0,1 names 2 GPUs, and tp is 2 and pp 2: each shard of each stage takes one");
  EXPECT_EQ(GpusOfShards("cuda:0,1,0", 3).status().message(),
            "device cuda:0,1,0 names GPU 0 twice: shards share none");
}

}  // namespace
}  // namespace penstock
