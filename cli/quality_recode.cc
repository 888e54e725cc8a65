// SPDX-License-Identifier: Apache-2.0
#include "cli/quality_recode.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "base/time.h"

namespace penstock::cli {

namespace {

// -127 has no other: -128 is no level.
void FlipLevels(const PageLayout& layout, std::byte* slab) {
  for (std::size_t page = 0; page < layout.block_bytes(); page += layout.page_bytes()) {
    for (std::size_t i = page; i < page + layout.k_scales_offset(); ++i) {
      if (static_cast<std::int8_t>(slab[i]) != -127) slab[i] ^= std::byte{1};
    }
  }
}

}  // namespace

void FlipLastBits(engine::KvPool& pool, const engine::GivenText& text) {
  CHECK(pool.host_visible());
  for (std::int32_t group = 0; group < pool.groups(); ++group) {
    const PageLayout& layout = pool.layout(group);
    const std::size_t step = BytesPerElement(layout.group.dtype);
    // The exponent is in the last two bytes of each type.
    const unsigned exponent = layout.group.dtype == KvDtype::kF16 ? 0x7C00 : 0x7F80;
    for (const engine::SlabRef slab : text.blocks().slabs(group)) {
      std::byte* const bytes = pool.Address(group, slab);
      if (layout.group.dtype == KvDtype::kInt8) {
        FlipLevels(layout, bytes);
        continue;
      }
      for (std::size_t i = 0; i < layout.block_bytes(); i += step) {
        std::uint16_t high;
        std::memcpy(&high, bytes + i + step - 2, sizeof(high));
        if ((high & exponent) != exponent) bytes[i] ^= std::byte{1};
      }
    }
  }
}

absl::Status Recoder::Copy(const engine::GivenText& from, engine::GivenText& to) {
  CHECK(pool_.host_visible());
  RETURN_IF_ERROR(to.StartAt(from.position()));
  for (std::int32_t group = 0; group < pool_.groups(); ++group) {
    const std::span<const engine::SlabRef> was = from.blocks().slabs(group);
    const std::span<const engine::SlabRef> becomes = to.blocks().slabs(group);
    const std::int32_t first = from.blocks().first_block(group);
    CHECK_EQ(first, to.blocks().first_block(group));
    CHECK_EQ(was.size(), becomes.size());
    for (std::size_t i = 0; i < was.size(); ++i) {
      RETURN_IF_ERROR(CopyBlock(group, first + static_cast<std::int32_t>(i), was[i], becomes[i]));
    }
  }
  return absl::OkStatus();
}

absl::Status Recoder::CopyBlock(std::int32_t group, std::int32_t block, engine::SlabRef from,
                                engine::SlabRef to) {
  const PageLayout& layout = pool_.layout(group);
  const kvstore::FrameMeta meta = {
      .key = {},
      .loss = kvstore::IsLossless(codec_.id()) ? LossClass::kExact : LossClass::kKl2,
      .group = group,
      .first_position = block * layout.block_tokens};
  frame_.resize(FrameBytesMax(codec_, kvstore::ShapeOf(layout), false));
  const MonoTime begin = SteadyClock().Now();
  ASSIGN_OR_RETURN(
      const std::size_t bytes,
      EncodeFrame(codec_, meta, layout, pool_.Address(group, from), {}, scratch_, frame_));
  const MonoTime encoded = SteadyClock().Now();
  ASSIGN_OR_RETURN(const kvstore::Frame frame,
                   kvstore::ParseFrame(std::span(frame_).first(bytes), {}));
  RETURN_IF_ERROR(DecodeFrame(frame, layout, scratch_, pool_.Address(group, to)));
  const MonoTime decoded = SteadyClock().Now();
  ASSIGN_OR_RETURN(const std::size_t header_bytes, kvstore::FrameHeaderBytesOf(frame_));
  frame_bytes_ += kvstore::FrameBytesSent(header_bytes, bytes);
  values_ += static_cast<std::size_t>(layout.block_tokens * layout.group.kv_heads) *
             static_cast<std::size_t>(layout.group.cache_layers) *
             static_cast<std::size_t>(layout.group.k_dim + layout.group.v_dim);
  const double gigabytes = 1e-9 * static_cast<double>(layout.block_bytes());
  // A clock that stood still says nothing.
  if (encoded > begin) encode_rates_.push_back(gigabytes / ToSeconds(encoded - begin));
  if (decoded > encoded) decode_rates_.push_back(gigabytes / ToSeconds(decoded - encoded));
  return absl::OkStatus();
}

double Recoder::bits_per_value() const {
  CHECK(values_ > 0);
  return 8 * static_cast<double>(frame_bytes_) / static_cast<double>(values_);
}

double Recoder::MedianGbps(std::vector<double> rates) {
  if (rates.empty()) return 0;
  const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
  std::nth_element(rates.begin(), middle, rates.end());
  return *middle;
}

}  // namespace penstock::cli
