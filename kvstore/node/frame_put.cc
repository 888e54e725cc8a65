// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/frame_put.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kvstore/node/copy_frame.h"

namespace penstock::kvstore {

absl::StatusOr<std::unique_ptr<FramePut>> FramePut::Make(OfferMessage offer,
                                                         const std::optional<Secret>& secret) {
  std::unique_ptr<FramePut> put(new FramePut);
  ASSIGN_OR_RETURN(put->header_, ParseHeaderOfCopy(offer.key, offer.header, secret));
  if (offer.offset % kFramePageBytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat("a payload must be offered at a multiple of ",
                                                   kFramePageBytes, ", got ", offer.offset));
  }
  RETURN_IF_ERROR(CheckRange("bytes of a frame", put->header_.payload_bytes(), std::uint64_t{1},
                             std::uint64_t{1} << 30));
  put->bytes_ = static_cast<std::uint32_t>(FramePayloadAt(offer.header.size()) +
                                           put->header_.payload_bytes());
  put->offer_ = std::move(offer);
  return put;
}

absl::Status FramePut::Begin(TierSet& tiers) {
  HostTier::Copy copy = {.key = offer_.key,
                         .bytes = bytes_,
                         .tenant = offer_.tenant,
                         .tokens_before = offer_.tokens_before,
                         .codec = static_cast<std::uint8_t>(header_.codec)};
  if (offer_.parent.has_value()) copy.parent = {offer_.key.space, *offer_.parent};
  ASSIGN_OR_RETURN(to_, tiers.BeginPut(copy));
  for (std::int32_t layer = 0; layer < header_.shape.cache_layers; ++layer) {
    runs_.push_back({.bytes = static_cast<std::uint32_t>(header_.LayerBytes(layer))});
  }
  return absl::OkStatus();
}

transfer::Channel::ReadRequest FramePut::Read(MonoTime deadline) const {
  transfer::Channel::ReadRequest read = {
      .segment = offer_.segment, .units = {}, .crcs = header_.layer_crcs, .deadline = deadline};
  std::size_t at = 0;
  const std::size_t payload_at = FramePayloadAt(offer_.header.size());
  for (const transfer::ByteRun& run : runs_) {
    read.units.push_back(
        {.from = offer_.offset + at, .to = to_.data() + payload_at + at, .runs = {&run, 1}});
    at += run.bytes;
  }
  return read;
}

void FramePut::End(TierSet& tiers, const absl::Status& status) {
  turn.End();
  const std::span<std::byte> to = std::exchange(to_, {});
  if (to.empty()) return;
  if (status.ok()) {
    const std::size_t payload_at = FramePayloadAt(offer_.header.size());
    std::ranges::copy(offer_.header, to.begin());
    std::ranges::fill(to.first(payload_at).subspan(offer_.header.size()), std::byte{0});
  }
  tiers.EndPut(offer_.key, status);
}

}  // namespace penstock::kvstore
