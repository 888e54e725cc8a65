// SPDX-License-Identifier: Apache-2.0
#include "base/sha256.h"

#include <openssl/evp.h>

#include "base/check.h"

namespace penstock {
namespace {

// Looked up once: that takes longer than hashing a block of tokens.
const EVP_MD* Algorithm() {
  static EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  CHECK(algorithm != nullptr);
  return algorithm;
}

}  // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  CHECK(context_ != nullptr);
  CHECK_EQ(EVP_DigestInit_ex(context_, Algorithm(), nullptr), 1);
}

Sha256::~Sha256() { EVP_MD_CTX_free(context_); }

void Sha256::Add(const void* data, std::size_t bytes) {
  CHECK_EQ(EVP_DigestUpdate(context_, data, bytes), 1);
}

Sha256Digest Sha256::Finish() {
  Sha256Digest digest;
  unsigned size = 0;
  CHECK_EQ(EVP_DigestFinal_ex(context_, digest.data(), &size), 1);
  CHECK_EQ(size, digest.size());
  CHECK_EQ(EVP_DigestInit_ex(context_, nullptr, nullptr), 1);
  return digest;
}

Sha256Digest Sha256Of(const void* data, std::size_t bytes) {
  Sha256 hash;
  hash.Add(data, bytes);
  return hash.Finish();
}

}  // namespace penstock
