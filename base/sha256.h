// SPDX-License-Identifier: Apache-2.0
// SHA-256 (FIPS 180-4, by OpenSSL): what names blocks, weights and fetched files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

struct evp_md_ctx_st;

namespace penstock {

using Sha256Digest = std::array<std::uint8_t, 32>;

// One thread at a time.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(const void* data, std::size_t bytes);
  // Of all that was added since the last Finish: the next one begins anew, for less than another
  // Sha256 would cost.
  Sha256Digest Finish();

 private:
  evp_md_ctx_st* const context_;
};

Sha256Digest Sha256Of(const void* data, std::size_t bytes);

}  // namespace penstock
