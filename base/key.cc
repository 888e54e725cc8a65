// SPDX-License-Identifier: Apache-2.0
#include "base/key.h"

#include <bit>

#include "base/check.h"
#include "base/sha256.h"

namespace penstock {
namespace {

void AddU32(std::uint32_t value, Sha256& hash) {
  const std::uint8_t le[4] = {
      static_cast<std::uint8_t>(value), static_cast<std::uint8_t>(value >> 8),
      static_cast<std::uint8_t>(value >> 16), static_cast<std::uint8_t>(value >> 24)};
  hash.Add(le, sizeof(le));
}

void AddSized(std::string_view text, Sha256& hash) {
  AddU32(static_cast<std::uint32_t>(text.size()), hash);
  hash.Add(text.data(), text.size());
}

template <typename D>
D Finish(Sha256& hash) {
  const Sha256Digest full = hash.Finish();
  D digest;
  std::memcpy(digest.bytes.data(), full.data(), digest.bytes.size());
  return digest;
}

Chain Next(const Chain& parent, std::span<const TokenId> block, Sha256& hash) {
  static_assert(std::endian::native == std::endian::little, "token ids are hashed little-endian");
  hash.Add(parent.bytes.data(), parent.bytes.size());
  hash.Add(block.data(), block.size_bytes());
  return Finish<Chain>(hash);
}

}  // namespace

Namespace MakeNamespace(const NamespaceFields& fields) {
  Sha256 hash;
  AddSized("penstock.namespace.v1", hash);
  for (const std::string* field :
       {&fields.model, &fields.weights, &fields.kv_dtype, &fields.adapter, &fields.rope_mode,
        &fields.numerics, &fields.loss_class}) {
    AddSized(*field, hash);
  }
  return Finish<Namespace>(hash);
}

Namespace CopySpace(const Namespace& space, std::uint32_t group, std::string_view loss) {
  Sha256 hash;
  AddSized("penstock.copy.v1", hash);
  hash.Add(space.bytes.data(), space.bytes.size());
  AddU32(group, hash);
  AddSized(loss, hash);
  return Finish<Namespace>(hash);
}

CopyName NameOf(const BlockKey& copy) {
  CopyName name;
  for (std::size_t i = 0; i < name.bytes.size(); ++i) {
    name.bytes[i] = copy.space.bytes[i] ^ copy.chain.bytes[i];
  }
  return name;
}

Chain RootChain(std::string_view salt, std::uint32_t block_tokens) {
  constexpr std::string_view kDomain = "penstock.chain.v1";
  Sha256 hash;
  hash.Add(kDomain.data(), kDomain.size());
  AddU32(block_tokens, hash);
  AddSized(salt, hash);
  return Finish<Chain>(hash);
}

std::uint32_t TenantOf(std::string_view salt) {
  if (salt.empty()) return 0;
  Sha256 hash;
  AddSized("penstock.tenant.v1", hash);
  AddSized(salt, hash);
  const Sha256Digest full = hash.Finish();
  return std::uint32_t{full[0]} | std::uint32_t{full[1]} << 8 | std::uint32_t{full[2]} << 16 |
         std::uint32_t{full[3]} << 24;
}

Chain NextChain(const Chain& parent, std::span<const TokenId> block) {
  Sha256 hash;
  return Next(parent, block, hash);
}

std::vector<Chain> ChainsOf(std::span<const TokenId> tokens, std::string_view salt,
                            std::uint32_t block_tokens) {
  return ChainsFrom(RootChain(salt, block_tokens), tokens, block_tokens);
}

std::vector<Chain> ChainsFrom(const Chain& root, std::span<const TokenId> tokens,
                              std::uint32_t block_tokens) {
  CHECK_GT(block_tokens, 0u);
  std::vector<Chain> chains;
  chains.reserve(tokens.size() / block_tokens);
  Chain parent = root;
  Sha256 hash;
  for (std::size_t i = 0; i + block_tokens <= tokens.size(); i += block_tokens) {
    parent = Next(parent, tokens.subspan(i, block_tokens), hash);
    chains.push_back(parent);
  }
  return chains;
}

std::string ToHex(std::span<const std::uint8_t> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(bytes.size() * 2);
  for (const std::uint8_t b : bytes) {
    hex.push_back(kDigits[b >> 4]);
    hex.push_back(kDigits[b & 15]);
  }
  return hex;
}

}  // namespace penstock
