// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_graphs.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "device/cuda_standin.h"

namespace penstock::kernels {
namespace {

template <typename... Arguments>
std::string KeyOf(const Arguments&... arguments) {
  StepKey key;
  key.Add("x", arguments...);
  return key.bytes();
}

// A struct whose padding is `filler`.
template <typename T>
T* Placed(int filler, std::vector<std::byte>& memory) {
  memory.assign(sizeof(T) + alignof(T), static_cast<std::byte>(filler));
  void* place = memory.data();
  std::size_t room = memory.size();
  return static_cast<T*>(std::align(alignof(T), sizeof(T), place, room));
}

TEST(StepKeyTest, PaddingIsNoPartOfIt) {
  std::vector<std::byte> memory;
  std::set<std::string> keys;
  for (const int filler : {0, 0x5a}) {
    auto* const kinds = Placed<DrawKinds>(filler, memory);
    kinds->count = 3;
    kinds->weights = kinds->top_k = kinds->top_p = kinds->sums = true;
    keys.insert(KeyOf(*kinds));
  }
  EXPECT_EQ(keys.size(), 1u);
}

TEST(StepKeyTest, EveryMemberIsPartOfIt) {
  std::set<std::string> keys;
  std::size_t made = 0;
  const auto add = [&](const auto&... arguments) {
    keys.insert(KeyOf(arguments...));
    ++made;
  };
  float a[2] = {};
  std::byte bytes[2] = {};
  add(CudaKv{});
  for (std::int32_t CudaKv::*member :
       {&CudaKv::block_tokens, &CudaKv::cache_layer, &CudaKv::row_count, &CudaKv::rows_max,
        &CudaKv::partitions_max, &CudaKv::sequence_count, &CudaKv::window_tokens}) {
    CudaKv kv;
    kv.*member = 1;
    add(kv);
  }
  add(Activations{.cols = 1}, 2);
  add(Activations{.cols = 1}, 3);
  add(Activations{.cols = 1, .f32 = a}, 2);
  add(Activations{.cols = 1, .f32 = a + 1}, 2);
  const PackedMatrix one = {.rows = 1, .data = bytes};
  const PackedMatrix other = {.rows = 1, .data = bytes + 1};
  for (const PackedMatrix* matrix : {&one, &other}) {
    for (const bool plus : {false, true}) {
      const std::vector<LinearOutput> outputs = {{matrix, nullptr, a, plus}};
      add(std::span<const LinearOutput>(outputs));
      const std::vector<LinearOutput> twice = {outputs[0], outputs[0]};
      add(std::span<const LinearOutput>(twice));
    }
  }
  add(CudaPrepare{});
  add(CudaPrepare{.norm_eps = 1});
  add(CudaPrepare{.cos = a});
  EXPECT_EQ(keys.size(), made);
}

TEST(CudaGraphsTest, KeepsThoseUsedLast) {
  cuda_standin::Reset({});
  const auto device = CudaDevice::Make(*penstock_cuda_plugin(), {.threads = 1}).value();
  CudaStream stream(device->plugin(), device->gpu());
  {
    CudaGraphs graphs;
    const auto name = [](std::size_t i) { return absl::StrCat("step ", i); };
    for (std::size_t i = 0; i < CudaGraphs::kGraphsMax + 5; ++i) {
      EXPECT_FALSE(graphs.Wants(name(i)));
      EXPECT_TRUE(graphs.Wants(name(i)));
      EXPECT_EQ(graphs.Find(name(i)), nullptr);
      const CudaGraph* const graph = graphs.Add(name(i), stream.Capture([] {}).value());
      EXPECT_EQ(graphs.Find(name(i)), graph);
      EXPECT_NE(graphs.Find(name(0)), nullptr);  // Used again and again.
    }
    EXPECT_EQ(cuda_standin::Now().graphs, CudaGraphs::kGraphsMax);
    for (std::size_t i = 1; i <= 5; ++i) EXPECT_EQ(graphs.Find(name(i)), nullptr);
    EXPECT_NE(graphs.Find(name(6)), nullptr);
    // What was seen too long ago counts as new.
    EXPECT_FALSE(graphs.Wants("old"));
    for (std::size_t i = 0; i < CudaGraphs::kSeenMax; ++i) {
      EXPECT_FALSE(graphs.Wants(absl::StrCat("once ", i)));
    }
    EXPECT_FALSE(graphs.Wants("old"));
  }
  EXPECT_EQ(cuda_standin::Now().graphs, 0);
}

}  // namespace
}  // namespace penstock::kernels
