// SPDX-License-Identifier: Apache-2.0
// By which lossless codec copies are made, where that is left to measurement (`--store-codec auto`).
//
// A frame is never made anew as it moves, so what is chosen here is what is read from every tier, by
// everybody. The choice is the least of the seconds that a byte of a block takes, from the pool that it
// leaves to the pool that it comes to, of which each is measured:
//
//   encode + ratio / bandwidth + decode
//
//   encode, decode   seconds per byte of the block, by this codec; 0 for decoding what lies ready. They
//                    are the host's, also where a GPU does it, which is faster (engine/slab_encoder.h):
//                    there `raw` may be chosen where another codec would have been a little better
//   ratio            bytes of the frame per byte of the block: of this model's own blocks
//   bandwidth        bytes of frames per second, of the ways by which copies came to this worker of late
//                    (a tier of a node, over a kind of link), each by its part of the bytes
//
// Where nothing came yet, copies are taken to be read from memory of this host: then `raw` is best, which
// is used there without a copy. Another codec is chosen when it is better by a tenth, so that the choice
// does not flicker.
//
// Measurements come in, the choice goes out; nothing here waits. Not thread-safe, but for Measure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/copy_event.h"
#include "base/kv_spec.h"
#include "base/time.h"
#include "kvstore/codecs/codec_id.h"
#include "transfer/link.h"

namespace penstock::kvstore {

class CodecChoice {
 public:
  // A block by one codec, there and back.
  struct Sample {
    CodecId codec = CodecId::kRaw;
    std::size_t block_bytes = 0;  // Above 0 (CHECKed).
    std::size_t frame_bytes = 0;
    Duration encode = {};
    Duration decode = {};
  };
  void Measured(const Sample& sample);
  // Each lossless codec that takes this block, a slab of `layout`; takes as long as it says. Any thread.
  static std::vector<Sample> Measure(const PageLayout& layout, const std::byte* slab);
  // Frames of so many bytes came from a tier over a link, in that time without their decoding.
  void Came(Tier tier, transfer::Kind kind, std::size_t bytes, Duration took);

  CodecId chosen() const { return chosen_; }
  // Seconds per byte of a block; 0: not measured.
  double SecondsOf(CodecId codec) const;
  // "planes 4.21 ns/B, raw 5.00, planes+zstd 6.10": the chosen one first.
  std::string Describe() const;

 private:
  struct Figures {  // Moving means; per byte of the block.
    double encode_s = 0;
    double decode_s = 0;
    double ratio = 0;  // 0: not measured.
  };
  struct Way {
    double bytes_per_s = 0;  // A moving mean.
    double weight = 0;       // Bytes that came, the older ones less.
  };
  double LinkSeconds() const;  // Of a byte of a frame.
  void Choose();

  CodecId chosen_ = CodecId::kRaw;
  std::map<CodecId, Figures> figures_;
  std::map<std::pair<Tier, transfer::Kind>, Way> ways_;
};

}  // namespace penstock::kvstore
