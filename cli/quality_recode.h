// SPDX-License-Identifier: Apache-2.0
// The blocks of one text, put through a codec into those of another: what a worker attends to that
// fetched them.
//
// One thread at a time.
#pragma once

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "engine/given_text.h"
#include "engine/kv_pool.h"
#include "kvstore/codecs/codec.h"

namespace penstock::cli {

// Changes the last bit of every finite value or level in the blocks of `text`, which no one else
// holds.
void FlipLastBits(engine::KvPool& pool, const engine::GivenText& text);

class Recoder {
 public:
  // `pool` outlives it, and its memory is the host's.
  Recoder(engine::KvPool& pool, const kvstore::Codec& codec) : pool_(pool), codec_(codec) {}

  // Makes `to`, empty, a text as long as `from`, which ends a block, of copies of its blocks.
  // Errors as GivenText::StartAt and EncodeFrame.
  absl::Status Copy(const engine::GivenText& from, engine::GivenText& to);

  // Of all copies so far.
  double bits_per_value() const;
  double encode_gbps() const { return MedianGbps(encode_rates_); }  // Of the median block.
  double decode_gbps() const { return MedianGbps(decode_rates_); }

 private:
  absl::Status CopyBlock(std::int32_t group, std::int32_t block, engine::SlabRef from,
                         engine::SlabRef to);
  static double MedianGbps(std::vector<double> rates);

  engine::KvPool& pool_;
  const kvstore::Codec& codec_;
  kvstore::CodecScratch scratch_;
  std::vector<std::byte> frame_;
  std::size_t frame_bytes_ = 0, values_ = 0;
  std::vector<double> encode_rates_, decode_rates_;  // GB/s by block.
};

}  // namespace penstock::cli
