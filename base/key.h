// SPDX-License-Identifier: Apache-2.0
// What names a block of KV cache: (namespace, chain).
//
// chain = first 16 bytes of SHA-256(parent chain [16 bytes] || token ids [block_tokens x u32 LE]).
//
// root chain = first 16 bytes of SHA-256("penstock.chain.v1" || block_tokens [u32 LE] ||
// sized(salt)), where sized(x) = length of x in bytes [u32 LE] || x.
//
// namespace = first 16 bytes of SHA-256(sized("penstock.namespace.v1") || sized(field) for every
// field of NamespaceFields in its order).
//
// So a chain names all tokens up to and including its block, and tenants with different salts share
// nothing. Who computes blocks is told the root chain; the salt stays with the gateway.
//
// tenant = first 4 bytes, as u32 LE, of SHA-256(sized("penstock.tenant.v1") || sized(salt)); 0 for the
// empty salt. It says whose quota a block counts against, and is no name: two salts may share one.
//
// What stores hold are copies: of one block, of one group of the KvSpec, of one loss. A copy's key is
// (copy space, chain), with
//
// copy space = first 16 bytes of SHA-256(sized("penstock.copy.v1") || namespace [16 bytes] ||
// group [u32 LE] || sized(loss)), loss = "exact", or the class of what the copy holds ("kl3"): the
// worse of that of the block's inputs and of its own codec. The namespace is that of the same class.
//
// So who asks for an exact copy cannot be given another. Its name, for who must not tell the parts
// apart, is the exclusive or of the two, byte by byte.
//
// Pure functions; any thread.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace penstock {

using TokenId = std::int32_t;

// 128 bits of a SHA-256. `Tag` keeps chains and namespaces from mixing.
template <typename Tag>
struct Digest128 {
  std::array<std::uint8_t, 16> bytes{};

  auto operator<=>(const Digest128&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const Digest128& d) {
    std::uint64_t low;
    // Already uniform: 64 bits are enough for a table.
    std::memcpy(&low, d.bytes.data(), sizeof(low));
    return H::combine(std::move(h), low);
  }
};
using Chain = Digest128<struct ChainTag>;
using Namespace = Digest128<struct NamespaceTag>;

struct BlockKey {
  Namespace space;
  Chain chain;

  auto operator<=>(const BlockKey&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const BlockKey& k) {
    return H::combine(std::move(h), k.space, k.chain);
  }
};

// Everything besides the tokens that decides a block's bits.
struct NamespaceFields {
  std::string model;       // Architecture family and shape.
  std::string weights;     // Digest of the weights.
  std::string kv_dtype;    // "f16", "bf16", "f32", "int8".
  std::string adapter;     // Empty without one.
  std::string rope_mode;   // "absolute".
  std::string numerics;    // What fixes the bits of a step; equal names promise equal bits.
  std::string loss_class;  // "exact", or the class of the loss that the block's inputs saw.
};

Namespace MakeNamespace(const NamespaceFields& fields);

using CopyName = Digest128<struct CopyNameTag>;
Namespace CopySpace(const Namespace& space, std::uint32_t group, std::string_view loss);
// `copy` is (copy space, chain).
CopyName NameOf(const BlockKey& copy);

Chain RootChain(std::string_view salt, std::uint32_t block_tokens);
std::uint32_t TenantOf(std::string_view salt);
Chain NextChain(const Chain& parent, std::span<const TokenId> block);

// Chains of all full blocks of `tokens`, first block first; the partial tail has none.
std::vector<Chain> ChainsOf(std::span<const TokenId> tokens, std::string_view salt,
                            std::uint32_t block_tokens);
// The same, of the salt that has this root chain.
std::vector<Chain> ChainsFrom(const Chain& root, std::span<const TokenId> tokens,
                              std::uint32_t block_tokens);

std::string ToHex(std::span<const std::uint8_t> bytes);

}  // namespace penstock
