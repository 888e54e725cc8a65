// SPDX-License-Identifier: Apache-2.0
#include "base/key.h"

#include <openssl/evp.h>

#include <bit>
#include <memory>

#include "base/check.h"

namespace penstock {
namespace {

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    CHECK_EQ(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr), 1);
  }
  void Add(const void* data, std::size_t size) {
    CHECK_EQ(EVP_DigestUpdate(context_.get(), data, size), 1);
  }
  void AddU32(std::uint32_t value) {
    const std::uint8_t le[4] = {
        static_cast<std::uint8_t>(value), static_cast<std::uint8_t>(value >> 8),
        static_cast<std::uint8_t>(value >> 16), static_cast<std::uint8_t>(value >> 24)};
    Add(le, sizeof(le));
  }
  void AddSized(std::string_view text) {
    AddU32(static_cast<std::uint32_t>(text.size()));
    Add(text.data(), text.size());
  }
  template <typename D>
  D Finish() {
    std::uint8_t full[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    CHECK_EQ(EVP_DigestFinal_ex(context_.get(), full, &size), 1);
    D digest;
    std::memcpy(digest.bytes.data(), full, digest.bytes.size());
    return digest;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

Namespace MakeNamespace(const NamespaceFields& fields) {
  Sha256 hash;
  hash.AddSized("penstock.namespace.v1");
  for (const std::string* field :
       {&fields.model, &fields.weights, &fields.kv_dtype, &fields.adapter, &fields.rope_mode,
        &fields.numerics, &fields.loss_class}) {
    hash.AddSized(*field);
  }
  return hash.Finish<Namespace>();
}

Chain RootChain(std::string_view salt, std::uint32_t block_tokens) {
  constexpr std::string_view kDomain = "penstock.chain.v1";
  Sha256 hash;
  hash.Add(kDomain.data(), kDomain.size());
  hash.AddU32(block_tokens);
  hash.AddSized(salt);
  return hash.Finish<Chain>();
}

Chain NextChain(const Chain& parent, std::span<const TokenId> block) {
  static_assert(std::endian::native == std::endian::little, "token ids are hashed little-endian");
  Sha256 hash;
  hash.Add(parent.bytes.data(), parent.bytes.size());
  hash.Add(block.data(), block.size_bytes());
  return hash.Finish<Chain>();
}

std::vector<Chain> ChainsOf(std::span<const TokenId> tokens, std::string_view salt,
                            std::uint32_t block_tokens) {
  CHECK_GT(block_tokens, 0u);
  std::vector<Chain> chains;
  chains.reserve(tokens.size() / block_tokens);
  Chain parent = RootChain(salt, block_tokens);
  for (std::size_t i = 0; i + block_tokens <= tokens.size(); i += block_tokens) {
    parent = NextChain(parent, tokens.subspan(i, block_tokens));
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
