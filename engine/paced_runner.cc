// SPDX-License-Identifier: Apache-2.0
#include "engine/paced_runner.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace penstock::engine {
namespace {

constexpr std::int32_t kSampleEvery = 16;  // Positions; of the model, whatever the blocks.
constexpr float kLow = -30;

std::uint64_t Mix(std::uint64_t x) {  // splitmix64's finalizer.
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The value of a token: of itself, its place and all before it.
std::uint64_t Next(std::uint64_t before, TokenId token, std::int32_t position) {
  const auto own = static_cast<std::uint64_t>(token) << 32 | static_cast<std::uint32_t>(position);
  return Mix(before + Mix(own + 0x9e3779b97f4a7c15u));
}

// As one layer and head keep it. The first of all keeps it as it is, so that it can go on.
std::uint64_t InRow(std::uint64_t value, std::int32_t group, std::int32_t cache_layer,
                    std::int32_t head) {
  const auto place = static_cast<std::uint64_t>(group) << 40 |
                     static_cast<std::uint64_t>(cache_layer) << 16 |
                     static_cast<std::uint64_t>(head);
  return place == 0 ? value : Mix(value + place);
}

void Fill(std::byte* to, std::size_t bytes, std::uint64_t word) {
  for (std::size_t i = 0; i < bytes; i += sizeof(word)) {
    std::memcpy(to + i, &word, sizeof(word));
    ++word;
  }
}

void WaitOnTheClock(MonoTime when) {
  // Nothing ever tells it: time itself is what a pass waits for.
  std::mutex mutex;
  std::condition_variable never;
  std::unique_lock lock(mutex);
  while (never.wait_until(lock, when) != std::cv_status::timeout) {
  }
}

}  // namespace

absl::Status Pace::Validate() const {
  if (!(prefill_tokens_per_s >= 1 && prefill_tokens_per_s <= 1e9)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prefill_tokens_per_s must be from 1 to 1000000000, got ", prefill_tokens_per_s));
  }
  constexpr std::int64_t kMicrosMax = 10'000'000;
  const auto micros = [](Duration d) {
    return std::chrono::duration_cast<std::chrono::microseconds>(d).count();
  };
  RETURN_IF_ERROR(CheckRange("microseconds of a step", micros(step), 0, kMicrosMax));
  return CheckRange("microseconds of a sequence", micros(sequence), 0, kMicrosMax);
}

Duration Pace::Of(std::span<const SequenceInput> sequences) const {
  Duration total = step;
  std::size_t prefill_tokens = 0;
  for (const SequenceInput& s : sequences) {
    if (s.tokens.size() == 1) {
      total += sequence;
    } else {
      prefill_tokens += s.tokens.size();
    }
  }
  const double seconds = static_cast<double>(prefill_tokens) / prefill_tokens_per_s;
  return total + FromSeconds(seconds);
}

PacedRunner::PacedRunner(KvPool& pool, const Options& options, const Clock& clock,
                         WaitUntil wait_until)
    : pool_(pool),
      options_(options),
      clock_(clock),
      wait_until_(std::move(wait_until)),
      logits_(static_cast<std::size_t>(options.logit_rows_max) *
                  static_cast<std::size_t>(options.vocab),
              kLow),
      high_(static_cast<std::size_t>(options.logit_rows_max)) {
  CHECK(pool.host_visible());
}

PacedRunner::PacedRunner(KvPool& pool, const Options& options)
    : PacedRunner(pool, options, SteadyClock(), WaitOnTheClock) {}

PacedRunner::Row PacedRunner::RowAt(const SequenceInput& sequence, KvLayerRef layer,
                                    std::int32_t head, std::int32_t position) const {
  const PageLayout& layout = pool_.layout(layer.group);
  const SequenceInput::Blocks& blocks = sequence.blocks[static_cast<std::size_t>(layer.group)];
  const std::int32_t block = position / layout.block_tokens - blocks.first_block;
  CHECK(block >= 0 && block < static_cast<std::int32_t>(blocks.slabs.size()));
  const std::int32_t in_block = position % layout.block_tokens;
  std::byte* const page =
      pool_.Address(layer.group, blocks.slabs[static_cast<std::size_t>(block)]) +
      layout.PageOffset(layer.cache_layer, head, in_block / layout.page_tokens);
  const auto row = static_cast<std::size_t>(in_block % layout.page_tokens);
  const std::size_t scale_at = row * ScaleBytes(layout.group.dtype);
  return {.k = page + row * layout.k_row_bytes(),
          .v = page + layout.v_offset() + row * layout.v_row_bytes(),
          .k_scale = page + layout.k_scales_offset() + scale_at,
          .v_scale = page + layout.v_scales_offset() + scale_at};
}

std::uint64_t PacedRunner::Read(const SequenceInput& sequence, KvLayerRef layer, std::int32_t head,
                                std::int32_t position) const {
  const Row row = RowAt(sequence, layer, head, position);
  std::uint64_t k, v;
  std::memcpy(&k, row.k, sizeof(k));
  std::memcpy(&v, row.v, sizeof(v));
  return v == ~k ? k : Mix(k + v);
}

void PacedRunner::AppendValues(const SequenceInput& sequence) {
  std::uint64_t value =
      sequence.position == 0 ? 0 : Read(sequence, {0, 0}, 0, sequence.position - 1);
  std::int32_t position = sequence.position;
  for (const TokenId token : sequence.tokens) {
    CHECK(token >= 0 && token < options_.vocab);
    value = Next(value, token, position++);
    values_.push_back(value);
  }
}

void PacedRunner::Write(const SequenceInput& sequence, std::size_t first_value, KvLayerRef layer) {
  const PageLayout& layout = pool_.layout(layer.group);
  const std::size_t scale_bytes = ScaleBytes(layout.group.dtype);
  for (std::size_t i = 0; i < sequence.tokens.size(); ++i) {
    for (std::int32_t head = 0; head < layout.group.kv_heads; ++head) {
      const Row row =
          RowAt(sequence, layer, head, sequence.position + static_cast<std::int32_t>(i));
      const std::uint64_t word =
          InRow(values_[first_value + i], layer.group, layer.cache_layer, head);
      Fill(row.k, layout.k_row_bytes(), word);
      Fill(row.v, layout.v_row_bytes(), ~word);
      std::memset(row.k_scale, 0, scale_bytes);
      std::memset(row.v_scale, 0, scale_bytes);
    }
  }
}

// Of what the token at `position` sees.
std::uint64_t PacedRunner::Digest(const SequenceInput& sequence, std::int32_t position) const {
  std::uint64_t digest = Read(sequence, {0, 0}, 0, position);
  for (std::int32_t g = 0; g < pool_.groups(); ++g) {
    const KvGroup& group = pool_.layout(g).group;
    const std::int32_t window = group.window_tokens;
    const std::int32_t seen = window == 0 ? 0 : std::max(0, position - window + 1);
    for (std::int32_t n = (seen + kSampleEvery - 1) / kSampleEvery; n * kSampleEvery < position;
         ++n) {
      const KvLayerRef layer = {g, n % group.cache_layers};
      digest = Mix(digest ^ Read(sequence, layer, n % group.kv_heads, n * kSampleEvery));
    }
  }
  return digest;
}

void PacedRunner::SetLogits(std::size_t row, std::uint64_t digest) {
  float* const logits = logits_.data() + row * static_cast<std::size_t>(options_.vocab);
  logits[high_[row]] = kLow;
  high_[row] = digest % static_cast<std::uint64_t>(options_.vocab);
  logits[high_[row]] = 0;
}

void PacedRunner::Run(std::span<const SequenceInput> sequences, std::span<TokenDraw> draws,
                      const std::function<void(std::int32_t layer)>& layer_done) {
  const MonoTime begin = clock_.Now();
  const Duration takes = options_.pace.Of(sequences);
  values_.clear();
  for (const SequenceInput& sequence : sequences) AppendValues(sequence);
  CHECK_LE(values_.size(), static_cast<std::size_t>(options_.rows_max));

  const std::vector<KvLayerRef>& layers = pool_.spec().layers;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    std::size_t first = 0;
    for (const SequenceInput& sequence : sequences) {
      Write(sequence, first, layers[layer]);
      first += sequence.tokens.size();
    }
    if (!layer_done) continue;
    wait_until_(begin + takes * static_cast<std::int64_t>(layer + 1) /
                            static_cast<std::int64_t>(layers.size()));
    layer_done(static_cast<std::int32_t>(layer));
  }
  logit_rows_ = 0;
  for (const SequenceInput& sequence : sequences) {
    const std::int32_t end = sequence.position + static_cast<std::int32_t>(sequence.tokens.size());
    for (std::int32_t p = end - sequence.logit_rows; p < end; ++p) {
      CHECK_LT(logit_rows_, high_.size());
      SetLogits(logit_rows_++, Digest(sequence, p));
    }
  }
  SampleOnHost(draws);
  wait_until_(begin + takes);
}

std::span<const float> PacedRunner::logits(std::int32_t i) const {
  const auto row = static_cast<std::size_t>(i);
  CHECK_LT(row, logit_rows_);
  const auto vocab = static_cast<std::size_t>(options_.vocab);
  return std::span(logits_).subspan(row * vocab, vocab);
}

void PacedRunner::ForEach(std::int64_t items, absl::FunctionRef<void(std::int64_t)> work) {
  for (std::int64_t i = 0; i < items; ++i) work(i);
}

}  // namespace penstock::engine
