// SPDX-License-Identifier: Apache-2.0
#include "transfer/plan.h"

#include <algorithm>
#include <limits>
#include <string_view>

#include "base/status.h"

namespace penstock::transfer {
namespace {

absl::Status MustBeEqual(std::string_view field, std::int64_t sender, std::int64_t receiver) {
  if (sender == receiver) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      ToAbsl(field), " is ", sender, " at the sender, ", receiver, " at the receiver"));
}

absl::Status Check(const PageLayout& from, const PageLayout& to) {
  RETURN_IF_ERROR(MustBeEqual("block_tokens", from.block_tokens, to.block_tokens));
  RETURN_IF_ERROR(MustBeEqual("cache_layers", from.group.cache_layers, to.group.cache_layers));
  RETURN_IF_ERROR(MustBeEqual("window_tokens", from.group.window_tokens, to.group.window_tokens));
  RETURN_IF_ERROR(MustBeEqual("k_dim", from.group.k_dim, to.group.k_dim));
  RETURN_IF_ERROR(MustBeEqual("v_dim", from.group.v_dim, to.group.v_dim));
  if (from.group.dtype != to.group.dtype) {
    return absl::FailedPreconditionError(
        absl::StrCat("KV dtype is ", ToAbsl(ToString(from.group.dtype)), " at the sender, ",
                     ToAbsl(ToString(to.group.dtype)), " at the receiver"));
  }
  return absl::OkStatus();
}

std::uint64_t LayerBytes(const PageLayout& layout) {
  return std::uint64_t{layout.page_bytes()} * static_cast<std::uint64_t>(layout.pages_per_block()) *
         static_cast<std::uint64_t>(layout.group.kv_heads);
}

// Where row `token` of head `head` (of this side's own) begins in its layer, in one of its pages'
// parts.
std::uint64_t RowOffset(const PageLayout& layout, std::int32_t head, const PagePart& part,
                        std::int32_t token) {
  return layout.PageOffset(0, head, token / layout.page_tokens) + part.offset +
         static_cast<std::uint64_t>(token % layout.page_tokens) * part.row_bytes;
}

void Append(std::vector<ByteRun>& runs, const ByteRun& run) {
  if (!runs.empty()) {
    ByteRun& last = runs.back();
    if (last.from + last.bytes == run.from && last.to + last.bytes == run.to) {
      last.bytes += run.bytes;
      return;
    }
  }
  runs.push_back(run);
}

}  // namespace

absl::StatusOr<LayerPlan> LayerPlan::Make(const SideLayout& sender, const SideLayout& receiver,
                                          const Heads& heads) {
  const PageLayout& from = sender.layout;
  const PageLayout& to = receiver.layout;
  RETURN_IF_ERROR(Check(from, to));
  const std::int32_t head_begin = std::max({sender.head_begin, receiver.head_begin, heads.begin});
  const std::int32_t head_end = std::min({sender.head_begin + from.group.kv_heads,
                                          receiver.head_begin + to.group.kv_heads, heads.end});
  if (head_begin >= head_end) {
    return absl::FailedPreconditionError(
        absl::StrCat("no KV head in common: the sender has ", sender.head_begin, " to ",
                     sender.head_begin + from.group.kv_heads - 1, ", the receiver ",
                     receiver.head_begin, " to ", receiver.head_begin + to.group.kv_heads - 1));
  }
  LayerPlan plan;
  plan.from_stride_ = LayerBytes(from);
  plan.to_stride_ = LayerBytes(to);
  const std::uint64_t most = std::max(plan.from_stride_, plan.to_stride_);
  if (most > std::numeric_limits<std::uint32_t>::max()) {
    return absl::FailedPreconditionError(
        absl::StrCat("a layer of a block must be less than 4 GiB, got ", most, " bytes"));
  }
  // Rows between two borders of pages, the sender's or the receiver's, are contiguous on both
  // sides. In the order of the sender's bytes: by head, page, part of a page, token.
  const std::vector<PagePart> from_parts = from.Parts();
  const std::vector<PagePart> to_parts = to.Parts();
  for (std::int32_t head = head_begin; head < head_end; ++head) {
    for (std::int32_t page = 0; page < from.block_tokens; page += from.page_tokens) {
      for (std::size_t part = 0; part < from_parts.size(); ++part) {
        for (std::int32_t token = page; token < page + from.page_tokens;) {
          const std::int32_t next = std::min(
              page + from.page_tokens, token / to.page_tokens * to.page_tokens + to.page_tokens);
          const std::size_t bytes =
              from_parts[part].row_bytes * static_cast<std::size_t>(next - token);
          Append(plan.runs_, {.from = static_cast<std::uint32_t>(RowOffset(
                                  from, head - sender.head_begin, from_parts[part], token)),
                              .to = static_cast<std::uint32_t>(
                                  RowOffset(to, head - receiver.head_begin, to_parts[part], token)),
                              .bytes = static_cast<std::uint32_t>(bytes)});
          plan.unit_bytes_ += bytes;
          token = next;
        }
      }
    }
  }
  return plan;
}

}  // namespace penstock::transfer
