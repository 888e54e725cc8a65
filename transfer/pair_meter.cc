// SPDX-License-Identifier: Apache-2.0
#include "transfer/pair_meter.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace penstock::transfer {
namespace {

using std::chrono::milliseconds;

constexpr int kQuestionsMax = 16;
constexpr Duration kQuestionsTime = milliseconds(25);
constexpr Duration kTime = milliseconds(100);       // Within it something new begins.
constexpr Duration kPatience = milliseconds(1000);  // With what has begun.
constexpr Duration kPause = milliseconds(20);       // While the peer measures another pair.
constexpr std::size_t kParts[] = {std::size_t{256} << 10, std::size_t{1} << 20, kProbeBytesMax};

// That one message has room for, of any layer.
std::size_t MostBlocks(const PairMeter::Pair& pair) {
  std::size_t most = kBlocksMax;
  for (const PairMeter::Layer& layer : pair.layers) {
    most = std::min(most, BlocksMax(layer.block.crcs.size()));
  }
  return most;
}

}  // namespace

struct PairMeter::Measuring {
  Pair pair;
  Done done;
  Loop::TimerId end{}, again{};
  bool begun = false;
  MonoTime since, asked;
  std::uint64_t asks = 0;
  bool answered = true;
  std::int32_t blocks = 0;                // Of what was asked last; 0: a question.
  int questions = 0;                      // Answered.
  std::size_t parts = 0;                  // Of kParts, done or passed over.
  std::size_t bytes = 0, part_bytes = 0;  // Moved, and of them the last part.
  PairFigures figures;

  Grant Asked() const { return {pair.grant.epoch, pair.grant.number + asks}; }
};

PairMeter::PairMeter(Loop& loop) : loop_(loop) {}

PairMeter::~PairMeter() {
  for (const auto& pair : pairs_) {
    loop_.CancelTimer(pair->end);
    loop_.CancelTimer(pair->again);
  }
}

void PairMeter::Add(Pair pair, Done done) {
  CHECK_GT(pair.block_bytes, std::size_t{0});
  auto measuring = std::make_unique<Measuring>();
  const Grant grant = pair.grant;
  measuring->end = loop_.At(pair.until, [this, grant] { End(grant, absl::OkStatus()); });
  measuring->pair = std::move(pair);
  measuring->done = std::move(done);
  pairs_.push_back(std::move(measuring));
  Schedule();
}

void PairMeter::Remove(const Grant& grant) { Take(grant); }

std::unique_ptr<PairMeter::Measuring> PairMeter::Take(const Grant& grant) {
  const auto at =
      std::ranges::find_if(pairs_, [&](const auto& pair) { return pair->pair.grant == grant; });
  if (at == pairs_.end()) return nullptr;
  std::unique_ptr<Measuring> taken = std::move(*at);
  pairs_.erase(at);
  loop_.CancelTimer(taken->end);
  loop_.CancelTimer(taken->again);
  if (!taken->answered) CallOff(*taken, absl::CancelledError("measured long enough"));
  Schedule();
  return taken;
}

void PairMeter::CallOff(Measuring& m, const absl::Status& why) {
  m.answered = true;
  // Should this be lost, the peer's own deadline ends it.
  (void)m.pair.channel->Send(Encode(FailedMessage{m.Asked(), why}));
}

void PairMeter::End(const Grant& grant, const absl::Status& status) {
  if (const std::unique_ptr<Measuring> ended = Take(grant)) ended->done(status, ended->figures);
}

void PairMeter::Schedule() {
  if (pairs_.empty() || pairs_.front()->begun) return;
  loop_.Post(life_.Guard([this] {
    if (pairs_.empty() || std::exchange(pairs_.front()->begun, true)) return;
    Measuring& m = *pairs_.front();
    m.since = loop_.Now();
    loop_.CancelTimer(m.end);
    m.end = loop_.At(std::min(m.pair.until, m.since + kPatience),
                     [this, grant = m.pair.grant] { End(grant, absl::OkStatus()); });
    Ask(m, 0);
  }));
}

void PairMeter::Ask(Measuring& m, std::int32_t blocks) {
  if (m.asks == kGrants) return End(m.pair.grant, absl::OkStatus());
  ++m.asks;
  m.answered = false;
  m.blocks = blocks;
  const Grant grant = m.Asked();
  m.asked = loop_.Now();
  absl::Status sent;
  if (blocks == 0) {
    sent = m.pair.channel->Send(Encode(ReadyMessage{.grant = grant, .blocks = {}}));
  }
  for (const Layer& layer : m.pair.layers) {
    if (blocks == 0 || !sent.ok()) break;
    sent = m.pair.channel->Send(
        Encode(ReadyMessage{.grant = grant,
                            .group = layer.group,
                            .cache_layer = layer.cache_layer,
                            .first_block = 0,
                            .blocks = {static_cast<std::size_t>(blocks), layer.block}}));
  }
  if (!sent.ok()) End(m.pair.grant, sent);
}

PairMeter::Measuring* PairMeter::Asked(const Channel& channel, const Grant& grant) const {
  if (pairs_.empty()) return nullptr;
  Measuring& m = *pairs_.front();
  return !m.answered && m.pair.channel == &channel && m.Asked() == grant ? &m : nullptr;
}

void PairMeter::OnReceived(const Channel& channel, const Grant& grant) {
  Measuring* const m = Asked(channel, grant);
  if (m == nullptr) return;
  m->answered = true;
  const Duration took = std::max(loop_.Now() - m->asked, Duration(1));
  if (m->blocks == 0) {
    PairFigures& figures = m->figures;
    if (m->questions++ == 0 || took < figures.round_trip) figures.round_trip = took;
    if (m->questions < kQuestionsMax && loop_.Now() - m->since < kQuestionsTime) return Ask(*m, 0);
  } else {
    m->part_bytes = static_cast<std::size_t>(m->blocks) * m->pair.block_bytes;
    m->bytes += m->part_bytes;
    m->figures.bytes_per_s =
        std::max(m->figures.bytes_per_s, static_cast<double>(m->part_bytes) / ToSeconds(took));
  }
  if (const std::int32_t blocks = NextBlocks(*m); blocks > 0) return Ask(*m, blocks);
  End(m->pair.grant, absl::OkStatus());
}

std::int32_t PairMeter::NextBlocks(Measuring& m) const {
  const double left = ToSeconds(kTime - (loop_.Now() - m.since));
  while (m.parts < std::size(kParts)) {
    const bool first = m.parts == 0;
    std::size_t bytes =
        std::min(kParts[m.parts++], kProbeBytesMax - std::min(m.bytes, kProbeBytesMax));
    if (!first) {
      const double foreseen = std::max(left, 0.0) * m.figures.bytes_per_s;
      if (static_cast<double>(bytes) > foreseen) bytes = static_cast<std::size_t>(foreseen);
    }
    const std::size_t blocks =
        std::clamp(bytes / m.pair.block_bytes, std::size_t{first ? 1u : 0u}, MostBlocks(m.pair));
    // What is no more than before tells nothing new.
    if (blocks * m.pair.block_bytes > m.part_bytes) return static_cast<std::int32_t>(blocks);
  }
  return 0;
}

void PairMeter::OnFailed(const Channel& channel, const Grant& grant, const absl::Status& why) {
  Measuring* const m = Asked(channel, grant);
  if (m == nullptr) return;
  m->answered = true;
  if (!absl::IsResourceExhausted(why)) return End(m->pair.grant, why);
  // It may have begun with a later layer; then it never saw this one.
  CallOff(*m, why);
  m->again = loop_.At(loop_.Now() + kPause, [this, m] { Ask(*m, m->blocks); });
}

}  // namespace penstock::transfer
