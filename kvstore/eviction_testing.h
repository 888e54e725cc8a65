// SPDX-License-Identifier: Apache-2.0
// What tests of policies share: made-up keys, chains, and policies by name.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "kvstore/eviction.h"

namespace penstock::kvstore {

inline BlockKey TestKey(std::uint64_t n) {
  BlockKey key;
  const std::uint64_t mixed = (n + 1) * 0x9e3779b97f4a7c15;
  std::memcpy(key.chain.bytes.data(), &mixed, sizeof(mixed));
  std::memcpy(key.chain.bytes.data() + sizeof(mixed), &n, sizeof(n));
  return key;
}

inline std::uint64_t TestNumber(const BlockKey& key) {
  std::uint64_t n;
  std::memcpy(&n, key.chain.bytes.data() + sizeof(n), sizeof(n));
  return n;
}

inline MonoTime TestTime(double seconds) { return MonoTime() + FromSeconds(seconds); }

inline std::unique_ptr<EvictionPolicy> TestPolicy(std::string_view name, std::uint64_t capacity,
                                                  std::size_t ghosts_max = 1000) {
  return MakeEvictionPolicy(name, {.capacity_bytes = capacity, .ghosts_max = ghosts_max}).value();
}

// One request for the chain of blocks numbered so, each of one byte: asked for, then each used or put.
inline void TestRequest(EvictionPolicy& policy, const std::vector<std::uint64_t>& numbers,
                        MonoTime now, std::uint32_t tenant = 0) {
  std::vector<BlockKey> chain;
  for (const std::uint64_t n : numbers) chain.push_back(TestKey(n));
  policy.Ask({.chain = chain}, now);
  EvictionBlock block = {.tenant = tenant};
  for (const BlockKey& key : chain) {
    block.key = key;
    if (!policy.Use(key, now)) policy.Put(block, now);
    block.parent = key;
    block.tokens_before += 32;
  }
}

inline std::vector<std::uint64_t> TestEvict(EvictionPolicy& policy, std::uint64_t bytes,
                                            MonoTime now) {
  std::vector<BlockKey> victims;
  policy.Evict(bytes, now, victims);
  std::vector<std::uint64_t> numbers;
  for (const BlockKey& key : victims) numbers.push_back(TestNumber(key));
  return numbers;
}

}  // namespace penstock::kvstore
