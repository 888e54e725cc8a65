// SPDX-License-Identifier: Apache-2.0
#include "cli/gpu_pairs.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace penstock::cli {
namespace {

// `layers` layers of `heads` KV heads, in one group.
KvSpec SpecOf(std::int32_t layers, std::int32_t heads) {
  KvSpec spec;
  KvGroup& group = spec.groups.emplace_back();
  group.cache_layers = layers;
  group.kv_heads = heads;
  group.k_dim = group.v_dim = 64;
  for (std::int32_t layer = 0; layer < layers; ++layer) {
    spec.layers.push_back({.group = 0, .cache_layer = layer});
  }
  return spec;
}

launch::Worker WorkerOn(launch::Role role, std::size_t host, const std::string& device,
                        std::int64_t pp = 1, std::int64_t tp = 1) {
  const bool prefills = role == launch::Role::kPrefill;
  return {.role = role,
          .name = absl::StrCat(prefills ? "prefill-" : "decode-", host + 1),
          .host = host,
          .device = device,
          .pp = pp,
          .tp = tp};
}
constexpr launch::Role kPrefill = launch::Role::kPrefill;
constexpr launch::Role kDecode = launch::Role::kDecode;

TEST(GpuPairsTest, LanesAreThoseOfTheTransferPlan) {
  struct Case {
    const char* name;
    std::int64_t from_pp, from_tp, to_pp, to_tp;
    GpuLanes want;
  };
  const Case cases[] = {
      {"one each", 1, 1, 1, 1, {{0, 0}}},
      {"shards to one", 1, 2, 1, 1, {{0, 0}, {1, 0}}},
      {"one to shards", 1, 1, 1, 2, {{0, 0}, {0, 1}}},
      {"alike", 1, 2, 1, 2, {{0, 0}, {1, 1}}},
      {"stages to shards", 2, 1, 1, 2, {{0, 0}, {0, 1}, {1, 0}, {1, 1}}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const auto lanes = LanesOf(
        SpecOf(4, 4),
        WorkerOn(kPrefill, 0, c.from_pp * c.from_tp == 2 ? "cuda:0,1" : "cuda:0", c.from_pp,
                 c.from_tp),
        WorkerOn(kDecode, 1, c.to_pp * c.to_tp == 2 ? "cuda:0,1" : "cuda:0", c.to_pp, c.to_tp));
    ASSERT_TRUE(lanes.ok()) << lanes.status();
    EXPECT_EQ(*lanes, c.want);
  }
}

TEST(GpuPairsTest, WhoSharesAGpuGoesThroughTheHost) {
  const launch::Worker prefill = WorkerOn(kPrefill, 0, "cuda:0,1", 1, 2);
  EXPECT_EQ(WhyNotNccl(prefill, WorkerOn(kDecode, 0, "cuda:1,2", 1, 2)),
            "prefill-1 and decode-1 share a GPU");
  EXPECT_EQ(WhyNotNccl(prefill, WorkerOn(kDecode, 0, "cuda:2")), "");
  EXPECT_EQ(WhyNotNccl(prefill, WorkerOn(kDecode, 1, "cuda:1")), "") << "of another host";
  EXPECT_TRUE(IsGpuPair(prefill, WorkerOn(kDecode, 1, "cuda:0")));
  EXPECT_FALSE(IsGpuPair(prefill, WorkerOn(kDecode, 1, "cpu")));
  EXPECT_FALSE(IsGpuPair(WorkerOn(kDecode, 1, "cuda:0"), prefill));
}

// Links are counted all, memory for as many as there are at a time.
TEST(GpuPairsTest, AGpuHasALinkForEachGpuThatItMeets) {
  struct Case {
    std::size_t prefills, links, at_a_time;
  };
  for (const Case& c : {Case{1, 2, 2}, Case{8, 16, 16}, Case{9, 18, 16}, Case{12, 24, 16}}) {
    SCOPED_TRACE(c.prefills);
    launch::Deployment deployment;
    deployment.transfer = {"nccl", "tcp"};
    deployment.workers.push_back(WorkerOn(kDecode, 0, "cuda:0"));
    for (std::size_t i = 0; i < c.prefills; ++i) {
      deployment.workers.push_back(WorkerOn(kPrefill, 1 + i, "cuda:0,1", 1, 2));
    }
    const KvSpec spec = SpecOf(4, 4);
    const launch::Worker& decode = deployment.workers.front();
    EXPECT_EQ(NcclLinks(deployment, decode, spec), c.links);
    EXPECT_EQ(NcclLinkBytes(deployment, decode, spec), c.at_a_time * NcclBytesOfOneLink());
    EXPECT_EQ(NcclLinks(deployment, deployment.workers.back(), spec), 1u);
    deployment.transfer = {"tcp"};
    EXPECT_EQ(NcclLinks(deployment, decode, spec), 0u);
  }
}

}  // namespace
}  // namespace penstock::cli
