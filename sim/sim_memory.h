// SPDX-License-Identifier: Apache-2.0
// A worker's pool in the simulator: real bytes in the layout of pages, filled with hashes of tokens
// in place of KV, so that a wrong or late byte is found. Free slabs hold poison, and are looked at
// when they are taken again. For tests: failures are GoogleTest's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/key.h"
#include "base/kv_spec.h"
#include "gtest/gtest.h"
#include "sim/sim_tokens.h"
#include "transfer/handoff_messages.h"
#include "transfer/segment_table.h"

namespace penstock::sim {

constexpr std::int32_t kBlockTokens = 4;
constexpr std::byte kPoison{0xDB};

// A pool of slabs of all groups; what is free holds poison, and is found changed when it does not.
class Memory {
 public:
  Memory(std::int32_t page_tokens, std::int32_t slabs) {
    for (const std::int32_t window : {0, 10}) {
      const KvGroup shape{.window_tokens = window,
                          .cache_layers = window == 0 ? 2 : 1,
                          .kv_heads = 2,
                          .k_dim = 8,
                          .v_dim = 8,
                          .dtype = KvDtype::kF16};
      Group group;
      group.layout = *PageLayout::Make(shape, kBlockTokens, page_tokens);
      group.bytes.assign(group.layout.slab_bytes() * static_cast<std::size_t>(slabs), kPoison);
      for (std::int32_t i = slabs - 1; i >= 0; --i) {
        group.free.push_back(static_cast<std::uint32_t>(i));
      }
      groups_.push_back(std::move(group));
    }
  }

  std::vector<transfer::PoolGroup> Describe(transfer::SegmentTable& segments) {
    std::vector<transfer::PoolGroup> described;
    for (Group& g : groups_) {
      described.push_back({.segment = segments.Register({.bytes = g.bytes, .shared_fd = -1}),
                           .slab_bytes = g.layout.slab_bytes(),
                           .side = {.layout = g.layout, .head_begin = 0}});
    }
    return described;
  }
  std::vector<const std::byte*> bases() const {
    std::vector<const std::byte*> all;
    for (const Group& g : groups_) all.push_back(g.bytes.data());
    return all;
  }
  std::int32_t groups() const { return static_cast<std::int32_t>(groups_.size()); }
  const PageLayout& layout(std::int32_t g) const { return At(g).layout; }
  bool Has(std::size_t blocks) const {
    return std::ranges::all_of(groups_, [&](const Group& g) { return g.free.size() >= blocks; });
  }
  std::byte* Address(std::int32_t g, std::uint32_t slab) {
    return At(g).bytes.data() + slab * At(g).layout.slab_bytes();
  }
  std::uint32_t Take(std::int32_t g) {
    const std::uint32_t slab = At(g).free.back();
    At(g).free.pop_back();
    const std::byte* const at = Address(g, slab);
    EXPECT_TRUE(*at == kPoison && std::memcmp(at, at + 1, At(g).layout.slab_bytes() - 1) == 0)
        << "written after it was given back";
    return slab;
  }
  void Give(std::int32_t g, std::uint32_t slab) {
    std::fill_n(Address(g, slab), At(g).layout.slab_bytes(), kPoison);
    At(g).free.insert(At(g).free.begin(), slab);  // Rested longest before it is used again.
  }
  // slabs[g] are those of group g.
  void GiveAll(const std::vector<std::vector<std::uint32_t>>& slabs) {
    for (std::int32_t g = 0; g < groups(); ++g) {
      for (const std::uint32_t slab : slabs[static_cast<std::size_t>(g)]) Give(g, slab);
    }
  }
  bool AllFree() const {
    return std::ranges::all_of(groups_, [](const Group& g) {
      return g.free.size() * g.layout.slab_bytes() == g.bytes.size();
    });
  }
  // Of the fullest group.
  std::size_t blocks_used() const {
    std::size_t used = 0;
    for (const Group& g : groups_) {
      used = std::max(used, g.bytes.size() / g.layout.slab_bytes() - g.free.size());
    }
    return used;
  }

  // The KV of one layer of block `b` of a prompt, element by element.
  template <typename F>
  void ForElements(std::int32_t g, std::int32_t layer, const std::vector<TokenId>& tokens,
                   std::int32_t b, F element) const {
    const PageLayout& layout = At(g).layout;
    std::uint64_t prefix = 7;
    for (std::int32_t t = 0; t < kBlockTokens; ++t) {
      const std::int32_t position = b * kBlockTokens + t;
      if (position >= static_cast<std::int32_t>(tokens.size())) return;
      for (std::int32_t p = t == 0 ? 0 : position; p <= position; ++p) {
        prefix = Mix(prefix + static_cast<std::uint64_t>(tokens[static_cast<std::size_t>(p)]));
      }
      for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
        const std::size_t page = layout.PageOffset(layer, head, t / layout.page_tokens);
        for (std::int32_t d = 0; d < 16; ++d) {
          const std::size_t row = static_cast<std::size_t>(t % layout.page_tokens) * 16;
          const std::size_t at = d < 8
                                     ? row + static_cast<std::size_t>(d) * 2
                                     : layout.k_bytes() + row + static_cast<std::size_t>(d - 8) * 2;
          const auto seed = static_cast<std::uint64_t>(g * 1000 + layer * 100 + head * 20 + d);
          element(page + at, static_cast<std::uint16_t>(Mix(prefix + seed)));
        }
      }
    }
  }
  void Fill(std::int32_t g, std::uint32_t slab, std::int32_t layer,
            const std::vector<TokenId>& tokens, std::int32_t b) {
    ForElements(g, layer, tokens, b, [&](std::size_t at, std::uint16_t value) {
      std::memcpy(Address(g, slab) + at, &value, sizeof(value));
    });
  }
  bool IsRight(std::int32_t g, const std::byte* slab, const std::vector<TokenId>& tokens,
               std::int32_t b) const {
    bool right = true;
    for (std::int32_t layer = 0; layer < At(g).layout.group.cache_layers; ++layer) {
      ForElements(g, layer, tokens, b, [&](std::size_t at, std::uint16_t value) {
        right &= std::memcmp(slab + at, &value, sizeof(value)) == 0;
      });
    }
    return right;
  }
  std::int32_t FirstNeeded(std::int32_t g, std::int32_t tokens) const {
    const std::int32_t window = At(g).layout.group.window_tokens;
    return window == 0 || tokens < window ? 0 : (tokens - window + 1) / kBlockTokens;
  }

 private:
  struct Group {
    PageLayout layout;
    std::vector<std::byte> bytes;
    std::vector<std::uint32_t> free;
  };
  Group& At(std::int32_t g) { return groups_[static_cast<std::size_t>(g)]; }
  const Group& At(std::int32_t g) const { return groups_[static_cast<std::size_t>(g)]; }

  std::vector<Group> groups_;
};

inline std::int32_t BlocksOf(std::size_t tokens) {
  return (static_cast<std::int32_t>(tokens) + kBlockTokens - 1) / kBlockTokens;
}

}  // namespace penstock::sim
