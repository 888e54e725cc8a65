// SPDX-License-Identifier: Apache-2.0
#include "cli/quality_report.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/kl_bounds.h"
#include "base/status.h"
#include "cli/svg_chart.h"

namespace penstock::cli {
namespace {

using kvstore::CodecQuality;
using kvstore::QualityRecord;

constexpr double kKlAxisMin = 1e-6;
constexpr double kKlAxisMax = 1;

std::string ClassOf(const CodecQuality& q) {
  const std::optional<LossClass> loss = kvstore::LossClassOf(q.codec, q.mean_kl);
  return loss.has_value() ? std::string(ToString(*loss)) : "none";
}

double UncompressedBits(const QualityRecord& record) {
  return 8 * static_cast<double>(BytesPerElement(record.kv_dtype));
}

// Those lossy ones that no other beats in both bytes and loss.
std::vector<std::pair<double, double>> Best(const std::vector<const CodecQuality*>& by_bits) {
  std::vector<std::pair<double, double>> best;
  for (const CodecQuality* q : by_bits) {
    if (kvstore::IsLossless(q->codec)) continue;
    if (best.empty() || q->mean_kl < best.back().second) {
      best.emplace_back(q->bits_per_value, q->mean_kl);
    }
  }
  return best;
}

// Whether another codec's dot is where the label of q would be, to its right.
bool HasNeighbour(const CodecQuality& q, const std::vector<const CodecQuality*>& all) {
  constexpr double kLabelBits = 2, kLabelRatio = 1.4;
  return std::ranges::any_of(all, [&](const CodecQuality* other) {
    const double off = other->bits_per_value - q.bits_per_value;
    return off > 0 && off < kLabelBits && other->mean_kl < q.mean_kl * kLabelRatio &&
           other->mean_kl * kLabelRatio > q.mean_kl;
  });
}

}  // namespace

std::string QualityText(std::string_view model_name, const QualityRecord& record) {
  std::string text = absl::StrFormat(
      "%s, %s KV: %d tokens behind a prompt of %d whose blocks of %d went through the codec,\n"
      "against the full cache, whose perplexity is %.4f. Other last bits of all values alone: mean "
      "KL "
      "%.2e\n\n",
      ToAbsl(model_name), ToAbsl(ToString(record.kv_dtype)), record.scored_tokens,
      record.prompt_tokens, record.block_tokens, record.perplexity, record.last_bit_kl);
  absl::StrAppend(&text,
                  "codec        bits  ratio  class    mean KL     median        p99        max   "
                  "top-1  perplexity");
  if (record.needles > 0) absl::StrAppend(&text, "  needles    NLL");
  absl::StrAppend(&text, "  encode  decode\n");
  for (const CodecQuality& q : record.codecs) {
    absl::StrAppendFormat(
        &text, "%-11s %5.2f  %5.2f  %-5s %10.2e %10.2e %10.2e %10.2e %6.1f%%  %+9.2f%%",
        ToAbsl(kvstore::ToString(q.codec)), q.bits_per_value,
        UncompressedBits(record) / q.bits_per_value, ClassOf(q), q.mean_kl, q.median_kl, q.p99_kl,
        q.max_kl, 100 * q.top1, 100 * (q.perplexity / record.perplexity - 1));
    if (record.needles > 0) {
      absl::StrAppendFormat(&text, "  %7s  %5.3f",
                            absl::StrCat(q.needles_correct, "/", record.needles_correct),
                            q.needle_nll);
    }
    absl::StrAppendFormat(&text, "  %6.2f  %6.2f\n", q.encode_gbps, q.decode_gbps);
  }
  absl::StrAppend(&text,
                  "\nbits: of a value, frames with their headers; perplexity: its change; encode, "
                  "decode: GB/s of\nuncompressed bytes, one thread\n");
  if (record.needles > 0) {
    absl::StrAppendFormat(
        &text,
        "needles: 5-digit numbers found in prompts of %d tokens, of the %d of %d that the full "
        "cache finds;\nNLL: of a token of the answer, the full cache's is %.3f\n",
        record.needle_tokens, record.needles_correct, record.needles, record.needle_nll);
  }
  return text;
}

std::string AgainstF16Text(const QualityRecord& record,
                           const engine::DivergenceSummary& against_f16) {
  return absl::StrFormat(
      "%s KV against f16 KV, each from the first token on: mean KL %.2e, median %.2e, p99 %.2e, "
      "max "
      "%.2e,\ntop-1 %.1f%%, perplexity %+.2f%%\n",
      ToAbsl(ToString(record.kv_dtype)), against_f16.mean_kl, against_f16.median_kl,
      against_f16.p99_kl, against_f16.max_kl, 100 * against_f16.top1,
      100 * (against_f16.q_perplexity / against_f16.p_perplexity - 1));
}

std::string QualitySvg(std::string_view model_name, const QualityRecord& record) {
  SvgChart chart(
      820, 560, absl::StrCat("Quality against bytes \u00b7 ", ToAbsl(model_name)),
      absl::StrFormat("%s KV; %d tokens behind a prompt of %d; mean KL to the full cache, nats",
                      ToAbsl(ToString(record.kv_dtype)), record.scored_tokens,
                      record.prompt_tokens));
  double low = kKlAxisMax, high = kKlAxisMin, bits_max = UncompressedBits(record);
  for (const CodecQuality& q : record.codecs) {
    bits_max = std::max(bits_max, q.bits_per_value);
    if (q.mean_kl <= 0) continue;
    low = std::min(low, q.mean_kl);
    high = std::max(high, q.mean_kl);
  }
  std::vector<double> bit_ticks = {0};
  const double step = bits_max > 20 ? 4 : 2;
  while (bit_ticks.back() < bits_max) bit_ticks.push_back(bit_ticks.back() + step);
  // Both classes' limits are inside, and a decade is left for what loses nothing.
  low = std::max(std::min(low, kKl3Max) / 10, kKlAxisMin);
  high = std::max(high, 2 * kKl2Max);
  chart.Panel(0, 70, 820, 480, "", {.ticks = bit_ticks, .label = "bits per value"},
              {.ticks = DecadeTicks(low, high), .log = true, .label = "mean KL"});
  if (record.last_bit_kl > 0) chart.MarkAcross(record.last_bit_kl, "other last bits alone");
  chart.MarkAcross(kKl3Max, "kl3 up to 0.005");
  chart.MarkAcross(kKl2Max, "kl2 up to 0.05");
  std::vector<const CodecQuality*> by_bits;
  for (const CodecQuality& q : record.codecs) by_bits.push_back(&q);
  std::ranges::stable_sort(by_bits, {}, [](const CodecQuality* q) { return q->bits_per_value; });
  chart.Line(Best(by_bits), "#bfd3ea");
  int exact = 0;
  for (const CodecQuality* q : by_bits) {
    const bool lossless = kvstore::IsLossless(q->codec);
    const std::string label = lossless
                                  ? absl::StrCat(ToAbsl(kvstore::ToString(q->codec)), ": exact")
                                  : std::string(kvstore::ToString(q->codec));
    chart.DotBeside(q->bits_per_value, q->mean_kl, lossless ? kGrey : kBlue, label,
                    !lossless && HasNeighbour(*q, by_bits), lossless ? ++exact : 0);
  }
  return chart.Take();
}

}  // namespace penstock::cli
