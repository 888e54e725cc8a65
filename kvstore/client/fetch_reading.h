// SPDX-License-Identifier: Apache-2.0
// One copy of a fetch's source, from found to verified. A part of the fetcher, on its loop.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/mapped_block.h"
#include "base/status.h"
#include "base/time.h"
#include "kernels/kv_encoding.h"
#include "kvstore/codecs/codec.h"
#include "kvstore/node/store_messages.h"
#include "transfer/link.h"
#include "transfer/link_turns.h"

namespace penstock::kvstore {

// Whether the payload is, layer by layer, what lies in a slab of this layout.
inline bool GoesStraight(const FrameHeader& header, const PageLayout& layout) {
  return header.codec == CodecId::kRaw && layout.pages_per_block() == 1;
}

struct Reading {
  FrameHeader header;
  FoundMessage found;
  std::vector<transfer::ByteRun> runs;                   // A layer each.
  std::vector<std::byte> payload;                        // Where it must be decoded.
  MonoTime asked;                                        // For its turn.
  transfer::LinkTurns::Turn turn;                        // Until it was read.
  std::optional<transfer::ReadId> read;                  // Under way.
  bool maps = false;                                     // It stays where it is.
  std::shared_ptr<const MappedBlock> mapped;             // Once verified there.
  std::shared_ptr<const kernels::EncodedBlock> encoded;  // Once verified, where it stays so.
  bool verified = false;

  // The payload has come, whole, and does not go straight: decodes it into `slab`, or, where
  // `may_stay` and a device can decode it, makes `encoded` of it. As DecodeFrame.
  absl::Status TakeIn(const PageLayout& layout, bool may_stay, CodecScratch& scratch,
                      std::byte* slab) {
    std::vector<std::byte> came = std::exchange(payload, {});
    const bool stays =
        may_stay && EncodingOf(header.codec).has_value() && kernels::OpsEncode(layout);
    if (!stays) return DecodeFrame({.header = header, .payload = came}, layout, scratch, slab);
    ASSIGN_OR_RETURN(kernels::EncodedBlock made,
                     EncodedOf(header, layout, scratch, std::move(came)));
    encoded = std::make_shared<const kernels::EncodedBlock>(std::move(made));
    return absl::OkStatus();
  }
};

}  // namespace penstock::kvstore
