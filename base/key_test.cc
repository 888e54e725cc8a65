// SPDX-License-Identifier: Apache-2.0
#include "base/key.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/container/flat_hash_set.h"

namespace penstock {
namespace {

// Tokens 0, step, 2 * step, ...; the root chain, the number of full blocks and their last chain.
struct ChainRow {
  const char* salt;
  std::uint32_t block_tokens;
  std::size_t tokens;
  TokenId step;
  std::size_t blocks;
  const char* root;
  const char* last;
};
struct NamespaceRow {
  const char* fields[7];
  const char* space;
};
// Of the second namespace below and the first full block of tokens 0, 1, ..., 31 without salt.
struct CopyRow {
  std::uint32_t group;
  const char* loss;
  const char* space;
  const char* name;
};
struct TenantRow {
  const char* salt;
  std::uint32_t tenant;
};

// Printed by tests/key_vectors.py.
// clang-format off
constexpr ChainRow kChainRows[] = {
    {"", 32, 0, 1, 0,
     "ffe3bf20ebe2169f0544769d545560b5", "ffe3bf20ebe2169f0544769d545560b5"},
    {"", 32, 31, 1, 0,
     "ffe3bf20ebe2169f0544769d545560b5", "ffe3bf20ebe2169f0544769d545560b5"},
    {"", 32, 64, 1, 2,
     "ffe3bf20ebe2169f0544769d545560b5", "e6e521fe69eecb7fe46c92fe0db01b5b"},
    {"tenant-a", 32, 64, 1, 2,
     "50973999b991edde08cbd09de682a4c1", "27071d6b4caaeccd55b20b0170b23935"},
    {"tenant-b", 32, 64, 1, 2,
     "a76413ee2da822c6004af68167b94a2a", "66a5846450f2f5da492a1d100875d6ef"},
    {"", 16, 64, 1, 4,
     "3aedcf5bd7ba7035405a7a36aea4bc39", "1e35dab1c20bf1af8f658201a2690951"},
    {"", 1, 3, 1, 3,
     "e2815a69fdde0d28f3e02138704ac921", "8f0849825fe3892859b22940eb59dbdf"},
    {"", 1024, 2050, 7, 2,
     "bcaea4de130c7a849f7a6721df6167f8", "67347a00a1fb064f619890d1eda7d8c7"},
    {"ü", 2, 5, -1, 2,
     "b24fc451588a9b0084a5d51ec8b8aaa7", "31fcfa37e3344eda0ded2021f2f80645"},
};
constexpr NamespaceRow kNamespaceRows[] = {
    {{"", "", "", "", "", "", ""},
     "9fa40a4059db0a7405dd35907435ed22"},
    {{"llama-30x576", "0123abcd", "f16", "", "absolute", "cpu-int8-v1", "exact"},
     "c8a18ebfc5e1756a792bae71fa58975b"},
    {{"llama-30x5760", "123abcd", "f16", "", "absolute", "cpu-int8-v1", "exact"},
     "01052407e7ea742b6e455e533c8b53e8"},
    {{"llama-30x576", "0123abcd", "f32", "lora-1", "absolute", "cpu-f32-v1", "exact"},
     "dfa91064456997de3039b9846534ac0e"},
};
constexpr CopyRow kCopyRows[] = {
    {0, "exact",
     "58f3b6770130e0a17d3fc6f71f1ae4a3", "d8f61c65cf3662637e4c4ebc6d7307af"},
    {1, "exact",
     "38c896265c3eef98bcf3aaff61e6a350", "b8cd3c3492386d5abf8022b4138f405c"},
    {0, "kl3",
     "0b890f24f26f14f10ec149e2e3c09660", "8b8ca5363c6996330db2c1a991a9756c"},
    {256, "kl2",
     "94c528bf1cda3f6daa5673e23979e261", "14c082add2dcbdafa925fba94b10016d"},
};
constexpr TenantRow kTenantRows[] = {
    {"", 0x00000000},
    {"tenant-a", 0xf380b71e},
    {"tenant-b", 0xc8961cb3},
    {"ü", 0xc3b044f1},
};
// clang-format on

std::vector<TokenId> Tokens(std::size_t count, TokenId step) {
  std::vector<TokenId> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<TokenId>(i) * step;
  return tokens;
}

NamespaceFields Fields(const char* const (&f)[7]) {
  return {f[0], f[1], f[2], f[3], f[4], f[5], f[6]};
}

TEST(KeyTest, ChainsEqualTheIndependentVectors) {
  for (const ChainRow& row : kChainRows) {
    SCOPED_TRACE(testing::Message() << "salt=" << row.salt << " block_tokens=" << row.block_tokens
                                    << " tokens=" << row.tokens);
    const Chain root = RootChain(row.salt, row.block_tokens);
    EXPECT_EQ(ToHex(root.bytes), row.root);
    const std::vector<Chain> chains =
        ChainsOf(Tokens(row.tokens, row.step), row.salt, row.block_tokens);
    ASSERT_EQ(chains.size(), row.blocks);
    EXPECT_EQ(ChainsFrom(root, Tokens(row.tokens, row.step), row.block_tokens), chains);
    EXPECT_EQ(ToHex((chains.empty() ? root : chains.back()).bytes), row.last);
  }
}

TEST(KeyTest, NamespacesEqualTheIndependentVectors) {
  for (const NamespaceRow& row : kNamespaceRows) {
    EXPECT_EQ(ToHex(MakeNamespace(Fields(row.fields)).bytes), row.space) << row.fields[0];
  }
}

TEST(KeyTest, CopiesEqualTheIndependentVectors) {
  const Namespace space = MakeNamespace(Fields(kNamespaceRows[1].fields));
  const Chain chain = ChainsOf(Tokens(32, 1), "", 32)[0];
  for (const CopyRow& row : kCopyRows) {
    const Namespace of = CopySpace(space, row.group, row.loss);
    EXPECT_EQ(ToHex(of.bytes), row.space);
    EXPECT_EQ(ToHex(NameOf({of, chain}).bytes), row.name);
  }
}

TEST(KeyTest, TenantsEqualTheIndependentVectors) {
  for (const TenantRow& row : kTenantRows) EXPECT_EQ(TenantOf(row.salt), row.tenant) << row.salt;
}

TEST(KeyTest, AnyFieldChangesTheNamespace) {
  std::set<Namespace> spaces = {MakeNamespace(NamespaceFields())};
  for (int field = 0; field < 7; ++field) {
    const char* fields[7] = {"", "", "", "", "", "", ""};
    fields[field] = "x";  // Moving the same text to another field is a change too.
    EXPECT_TRUE(spaces.insert(MakeNamespace(Fields(fields))).second) << "field " << field;
  }
}

TEST(KeyTest, AChainNamesAllTokensUpToItsBlock) {
  const std::vector<TokenId> tokens = Tokens(64, 3);
  const std::vector<Chain> chains = ChainsOf(tokens, "", 8);
  ASSERT_EQ(chains.size(), 8u);
  for (std::size_t changed = 0; changed < tokens.size(); ++changed) {
    std::vector<TokenId> other = tokens;
    other[changed] += 1;
    const std::vector<Chain> changed_chains = ChainsOf(other, "", 8);
    for (std::size_t block = 0; block < chains.size(); ++block) {
      EXPECT_EQ(chains[block] == changed_chains[block], block < changed / 8)
          << "token " << changed << " block " << block;
    }
  }
}

TEST(KeyTest, APrefixHasThePrefixOfTheChains) {
  const std::vector<TokenId> tokens = Tokens(100, 1);
  const std::vector<Chain> all = ChainsOf(tokens, "salt", 8);
  for (std::size_t count = 0; count <= tokens.size(); ++count) {
    const std::vector<Chain> some = ChainsOf(std::span(tokens).first(count), "salt", 8);
    ASSERT_EQ(some.size(), count / 8);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << count;
  }
}

TEST(KeyTest, KeysAreUsableInTables) {
  const std::vector<Chain> chains = ChainsOf(Tokens(1000, 1), "", 1);
  const Namespace a = MakeNamespace(NamespaceFields());
  const Namespace b = MakeNamespace({"b", "", "", "", "", "", ""});
  absl::flat_hash_set<BlockKey> keys;
  for (const Chain& chain : chains) {
    EXPECT_TRUE(keys.insert({a, chain}).second);
    EXPECT_TRUE(keys.insert({b, chain}).second);
    EXPECT_FALSE(keys.insert({a, chain}).second);
  }
  EXPECT_EQ(keys.size(), 2000u);
}

TEST(KeyTest, HexIsLowerCaseHighDigitFirst) {
  const std::uint8_t bytes[] = {0x00, 0x0f, 0xa5, 0xff};
  EXPECT_EQ(ToHex(bytes), "000fa5ff");
  EXPECT_EQ(ToHex({}), "");
}

}  // namespace
}  // namespace penstock
