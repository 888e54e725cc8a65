// SPDX-License-Identifier: Apache-2.0
#include "kvstore/client/codec_choice.h"

#include <span>

#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status.h"
#include "kvstore/codecs/codec.h"
#include "kvstore/codecs/frame.h"

namespace penstock::kvstore {
namespace {

constexpr double kNewest = 0.2;           // Its weight in a moving mean.
constexpr double kKept = 0.999;           // Of the weight of a way, when bytes come by any.
constexpr double kMemoryBytesPerS = 4e9;  // Until anything came.
constexpr double kBetter = 0.9;

void Take(double& mean, double value, bool first) {
  mean = first ? value : mean + kNewest * (value - mean);
}

}  // namespace

void CodecChoice::Measured(const Sample& sample) {
  CHECK_GT(sample.block_bytes, 0u);
  CHECK(IsLossless(sample.codec));
  Figures& figures = figures_[sample.codec];
  const bool first = figures.ratio == 0;
  const auto bytes = static_cast<double>(sample.block_bytes);
  Take(figures.encode_s, ToSeconds(sample.encode) / bytes, first);
  Take(figures.decode_s, ToSeconds(sample.decode) / bytes, first);
  Take(figures.ratio, static_cast<double>(sample.frame_bytes) / bytes, first);
  Choose();
}

void CodecChoice::Came(Tier tier, transfer::Kind kind, std::size_t bytes, Duration took) {
  if (bytes == 0 || took <= Duration()) return;
  for (auto& [of, way] : ways_) way.weight *= kKept;
  Way& way = ways_[{tier, kind}];
  Take(way.bytes_per_s, static_cast<double>(bytes) / ToSeconds(took), way.weight == 0);
  way.weight += static_cast<double>(bytes);
  Choose();
}

std::vector<CodecChoice::Sample> CodecChoice::Measure(const PageLayout& layout,
                                                      const std::byte* slab) {
  const FrameMeta meta;
  CodecScratch scratch;
  std::vector<std::byte> back(layout.slab_bytes());
  std::vector<std::byte> frame;
  const auto encode = [&](CodecId id) {
    frame.resize(FrameBytesMax(CodecOf(id), ShapeOf(layout), false));
    return EncodeFrame(CodecOf(id), meta, layout, slab, {}, scratch, frame);
  };
  std::vector<Sample> samples;
  // Untimed: all find the block where the first one brings it.
  if (!encode(CodecId::kRaw).ok()) return samples;
  for (const CodecId id : AllCodecs()) {
    if (!IsLossless(id)) continue;
    const MonoTime begun = SteadyClock().Now();
    const absl::StatusOr<std::size_t> bytes = encode(id);
    const MonoTime encoded = SteadyClock().Now();
    if (!bytes.ok()) continue;
    Sample sample = {.codec = id,
                     .block_bytes = layout.block_bytes(),
                     .frame_bytes = *bytes,
                     .encode = encoded - begun};
    if (id != CodecId::kRaw) {  // Which is used as it lies.
      const auto parsed = ParseFrame(std::span(frame).first(*bytes), {.shape = ShapeOf(layout)});
      const MonoTime checked = SteadyClock().Now();
      if (!parsed.ok() || !DecodeFrame(*parsed, layout, scratch, back.data()).ok()) continue;
      sample.decode = SteadyClock().Now() - checked;
    }
    samples.push_back(sample);
  }
  return samples;
}

double CodecChoice::LinkSeconds() const {
  double seconds = 0, weight = 0;
  for (const auto& [of, way] : ways_) {
    seconds += way.weight / way.bytes_per_s;
    weight += way.weight;
  }
  return weight == 0 ? 1 / kMemoryBytesPerS : seconds / weight;
}

double CodecChoice::SecondsOf(CodecId codec) const {
  const auto it = figures_.find(codec);
  if (it == figures_.end()) return 0;
  const Figures& figures = it->second;
  return figures.encode_s + figures.ratio * LinkSeconds() + figures.decode_s;
}

void CodecChoice::Choose() {
  for (const auto& [codec, figures] : figures_) {
    const double now = SecondsOf(chosen_);
    if (now > 0 && SecondsOf(codec) < kBetter * now) chosen_ = codec;
  }
}

std::string CodecChoice::Describe() const {
  std::string text =
      absl::StrFormat("%s %.2f ns/B", ToAbsl(ToString(chosen_)), SecondsOf(chosen_) * 1e9);
  for (const auto& [codec, figures] : figures_) {
    if (codec == chosen_) continue;
    absl::StrAppendFormat(&text, ", %s %.2f", ToAbsl(ToString(codec)), SecondsOf(codec) * 1e9);
  }
  return text;
}

}  // namespace penstock::kvstore
