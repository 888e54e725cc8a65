// SPDX-License-Identifier: Apache-2.0
#include "base/kv_spec.h"

#include <bit>
#include <string>

#include "base/check.h"
#include "base/status.h"

namespace penstock {
std::size_t BytesPerElement(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kF16:
    case KvDtype::kBF16:
      return 2;
    case KvDtype::kF32:
      return 4;
    case KvDtype::kInt8:
      return 1;
  }
  return 0;
}

std::size_t ScaleBytes(KvDtype dtype) { return dtype == KvDtype::kInt8 ? 2 : 0; }

std::string_view ToString(KvDtype dtype) {
  switch (dtype) {
    case KvDtype::kF16:
      return "f16";
    case KvDtype::kBF16:
      return "bf16";
    case KvDtype::kF32:
      return "f32";
    case KvDtype::kInt8:
      return "int8";
  }
  return "?";
}

absl::StatusOr<KvDtype> ParseKvDtype(std::string_view text) {
  for (const KvDtype dtype : kKvDtypes) {
    if (text == ToString(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("KV dtype must be f16, bf16, f32 or int8, got ", ToAbsl(text)));
}

std::size_t KvGroup::BytesPerToken() const {
  const std::size_t dims = std::size_t{1} * k_dim + v_dim;
  return (dims * BytesPerElement(dtype) + 2 * ScaleBytes(dtype)) * cache_layers * kv_heads;
}

std::size_t KvSpec::BytesPerToken() const {
  std::size_t bytes = 0;
  for (const KvGroup& group : groups) bytes += group.BytesPerToken();
  return bytes;
}

absl::StatusOr<PageLayout> PageLayout::Make(const KvGroup& group, std::int32_t block_tokens,
                                            std::int32_t page_tokens) {
  RETURN_IF_ERROR(CheckRange("block_tokens", block_tokens, 1, 1024));
  if (!std::has_single_bit(static_cast<std::uint32_t>(block_tokens))) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_tokens must be a power of two, got ", block_tokens));
  }
  RETURN_IF_ERROR(CheckRange("page_tokens", page_tokens, 1, block_tokens));
  if (block_tokens % page_tokens != 0) {
    return absl::InvalidArgumentError(absl::StrCat("page_tokens must divide block_tokens (",
                                                   block_tokens, "), got ", page_tokens));
  }
  if (group.dtype == KvDtype::kInt8 && page_tokens % 4 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_tokens must be a multiple of 4 with int8 KV, got ", page_tokens));
  }
  RETURN_IF_ERROR(CheckRange("cache_layers", group.cache_layers, 1, 4096));
  RETURN_IF_ERROR(CheckRange("kv_heads", group.kv_heads, 1, 4096));
  RETURN_IF_ERROR(CheckRange("window_tokens", group.window_tokens, 0, 1 << 30));
  for (const auto& [field, dim] :
       {std::pair{"k_dim", group.k_dim}, std::pair{"v_dim", group.v_dim}}) {
    RETURN_IF_ERROR(CheckRange(field, dim, 8, 1024));
    if (dim % 8 != 0) {
      return absl::InvalidArgumentError(absl::StrCat(field, " must be a multiple of 8, got ", dim));
    }
  }
  PageLayout layout;
  layout.block_tokens = block_tokens;
  layout.page_tokens = page_tokens;
  layout.group = group;
  return layout;
}

std::vector<PagePart> PageLayout::Parts() const {
  std::vector<PagePart> parts = {{0, k_row_bytes()}, {v_offset(), v_row_bytes()}};
  if (const std::size_t scale = ScaleBytes(group.dtype); scale > 0) {
    parts.push_back({k_scales_offset(), scale});
    parts.push_back({v_scales_offset(), scale});
  }
  return parts;
}

}  // namespace penstock
