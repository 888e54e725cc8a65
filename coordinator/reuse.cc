// SPDX-License-Identifier: Apache-2.0
#include "coordinator/reuse.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/fetch_pace.h"

namespace penstock::coordinator {
namespace {

using Choice = Reuse::Choice;
using Holder = StoreIndex::Holder;
using Run = StoreIndex::Run;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kAsSoon = 1.1;  // Predictions are no better than that.

const Worker* StoreOf(const StoreNodes& stores, std::size_t number) {
  return number < stores.size() ? stores[number] : nullptr;
}

// Runs of one group, walked as blocks go up.
class Cursor {
 public:
  explicit Cursor(const StoreIndex::Found& found) : found_(&found) {}
  // The run that has `block`, or null.
  const Run* At(std::uint32_t block) {
    while (next_ < found_->runs.size() && found_->runs[next_].end <= block) ++next_;
    if (next_ == found_->runs.size() || found_->runs[next_].first > block) return nullptr;
    return &found_->runs[next_];
  }
  // Where what At said of `block` changes.
  std::uint32_t Until(std::uint32_t block) {
    if (const Run* const run = At(block)) return run->end;
    return next_ == found_->runs.size() ? UINT32_MAX : found_->runs[next_].first;
  }
  const Holder* HolderAt(std::uint32_t block, StoreIndex::Node node) {
    const Run* const run = At(block);
    if (run == nullptr) return nullptr;
    for (const Holder& holder : found_->of(*run)) {
      if (holder.node == node) return &holder;
    }
    return nullptr;
  }
  std::span<const Holder> HoldersOf(const Run& run) const { return found_->of(run); }
  double BlockBytes(const Holder& holder) const {
    const Run& run = found_->runs[next_];
    return static_cast<double>(holder.bytes) / (run.end - run.first);
  }

 private:
  const StoreIndex::Found* found_;
  std::size_t next_ = 0;
};

// The first block that the token at `position` sees.
std::uint32_t FirstVisible(std::uint64_t position, std::uint32_t window_tokens,
                           std::uint32_t block_tokens) {
  if (window_tokens == 0 || position < window_tokens) return 0;
  return static_cast<std::uint32_t>((position - window_tokens + 1) / block_tokens);
}

// All groups' copies of one class.
struct ClassCursors {
  LossClass loss = LossClass::kExact;
  std::vector<Cursor> full = {};
  std::vector<Cursor> windows = {};

  std::uint32_t Until(std::uint32_t block) {
    std::uint32_t end = UINT32_MAX;
    for (Cursor& cursor : full) end = std::min(end, cursor.Until(block));
    for (Cursor& cursor : windows) end = std::min(end, cursor.Until(block));
    return end;
  }
};

bool MayFetch(std::span<const CodecLoss> codecs, std::uint8_t codec, LossClass loss) {
  return loss == LossClass::kExact || std::ranges::any_of(codecs, [&](const CodecLoss& c) {
           return c.codec == codec && c.loss <= loss;
         });
}

// Every node that has `block` in all full groups, as copies of that class.
void AddChoices(ClassCursors& cursors, std::uint32_t block, std::span<const CodecLoss> codecs,
                const StoreNodes& stores, std::vector<Choice>& choices) {
  const Run* const run = cursors.full[0].At(block);
  if (run == nullptr) return;
  // Of the first group; the others must have the same node.
  for (const Holder& holder : cursors.full[0].HoldersOf(*run)) {
    const Worker* const store = StoreOf(stores, holder.node);
    if (store == nullptr || !store->usable()) continue;
    Choice choice = {
        .store = store->id, .tier = holder.tier, .codec = holder.codec, .loss = cursors.loss};
    bool all = true;
    for (Cursor& other : cursors.full) {
      const Holder* const copy = other.HolderAt(block, holder.node);
      all = copy != nullptr && MayFetch(codecs, copy->codec, cursors.loss);
      if (!all) break;
      choice.tier = std::max(choice.tier, copy->tier);
      choice.block_bytes += other.BlockBytes(*copy);
    }
    if (!all) continue;
    for (Cursor& other : cursors.windows) {
      const Holder* const copy = other.HolderAt(block, holder.node);
      choice.windows = copy != nullptr && MayFetch(codecs, copy->codec, cursors.loss);
      if (!choice.windows) break;
      choice.window_block_bytes += other.BlockBytes(*copy);
    }
    choices.push_back(choice);
  }
}

}  // namespace

void JoinGroups(std::span<const StoredGroup> groups, std::span<const StoreIndex::Found> found,
                std::span<const CodecLoss> codecs, const StoreNodes& stores,
                std::uint32_t segments_max, Reuse& reuse) {
  reuse.clear();
  if (groups.empty()) return;
  std::vector<ClassCursors> classes(found.size() / groups.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    ClassCursors& cursors = classes[i / groups.size()];
    cursors.loss = static_cast<LossClass>(i / groups.size());
    const StoredGroup& group = groups[i % groups.size()];
    (group.window_tokens == 0 ? cursors.full : cursors.windows).emplace_back(found[i]);
    reuse.window_tokens = std::max(reuse.window_tokens, group.window_tokens);
  }
  for (ClassCursors& cursors : classes) {
    if (!cursors.full.empty()) continue;
    cursors.full.swap(cursors.windows);
    reuse.window_tokens = 0;
  }
  std::uint32_t end = 0;
  for (std::uint32_t block = 0; reuse.segments.size() < segments_max; block = end) {
    end = UINT32_MAX;
    for (ClassCursors& cursors : classes) end = std::min(end, cursors.Until(block));
    if (end == UINT32_MAX) return;
    Reuse::Segment segment = {block, end, static_cast<std::uint32_t>(reuse.choices.size()), 0};
    for (ClassCursors& cursors : classes) {
      AddChoices(cursors, block, codecs, stores, reuse.choices);
    }
    segment.choices_end = static_cast<std::uint32_t>(reuse.choices.size());
    if (segment.choices_end > segment.choices_first) reuse.segments.push_back(segment);
  }
}

namespace {

// 0: nobody measured. Of copies by no known codec (0) the slowest counts.
double MeasuredRate(const ReuseSituation& situation, const Worker& worker, const Worker& store,
                    Tier tier, std::uint8_t codec) {
  const auto t = static_cast<std::size_t>(tier);
  const auto& rates = worker.fetch_bytes_per_s;
  double slowest = 0;
  for (auto at = rates.lower_bound({store.id, codec});
       at != rates.end() && at->first.first == store.id; ++at) {
    if (codec != 0 && at->first.second != codec) break;
    const double rate = at->second[t];
    if (rate > 0 && (slowest == 0 || rate < slowest)) slowest = rate;
  }
  if (slowest > 0 || situation.means == nullptr) return slowest;
  const bool same_host = worker.host != 0 && worker.host == store.host;
  return codec == 0 ? situation.means->slowest(same_host, tier)
                    : situation.means->of(same_host, tier, codec);
}

double RateOf(const ReuseSituation& situation, const ReuseOptions& options, const Worker& worker,
              const Worker& store, Tier tier, std::uint8_t codec) {
  const auto t = static_cast<std::size_t>(tier);
  const bool same_host = worker.host != 0 && worker.host == store.host;
  const double measured = MeasuredRate(situation, worker, store, tier, codec);
  if (measured > 0) return measured;
  const double path = same_host ? options.local_bytes_per_s
                                : std::min(options.peer_bytes_per_s, worker.link_bytes_per_s);
  if (tier != Tier::kDisk && tier != Tier::kRemote) return path;
  const double guess = tier == Tier::kDisk ? options.disk_bytes_per_s : options.remote_bytes_per_s;
  return std::min(path, store.tier_bytes_per_s[t] > 0 ? store.tier_bytes_per_s[t] : guess);
}

}  // namespace

// At least 1: what was measured may be nonsense.
double FetchBytesPerS(const ReuseSituation& situation, const ReuseOptions& options,
                      const Worker& worker, const Worker& store, Tier tier, std::uint8_t codec) {
  return std::max(1.0, RateOf(situation, options, worker, store, tier, codec));
}

namespace {

// One segment, as far as it can be of use, with the best node for it.
struct Leg {
  std::uint32_t first = 0;
  std::uint32_t end = 0;
  struct Way {
    const Choice* choice = nullptr;
    double bytes_per_s = 0;
    double begin_seconds = 0;  // Before its first byte.
    double seconds = kNever;   // Without window groups.
  };
  Way any;
  Way windowed;  // From a node that has window groups, too.

  double WindowedSeconds(std::uint32_t window_blocks) const {
    if (windowed.choice == nullptr) return kNever;
    return windowed.seconds +
           window_blocks * windowed.choice->window_block_bytes / windowed.bytes_per_s;
  }
};

class Planner {
 public:
  Planner(const ReuseSituation& situation, const ReuseOptions& options, const Worker& worker)
      : s_(situation), options_(options), worker_(worker) {}

  void AddLegs(std::uint32_t own_blocks) {
    std::uint32_t at = own_blocks;
    for (const Reuse::Segment& segment : s_.reuse->segments) {
      if (segment.end <= at) continue;
      if (segment.first > at || at >= s_.blocks_max) break;
      Leg leg = {
          .first = at, .end = std::min(segment.end, s_.blocks_max), .any = {}, .windowed = {}};
      for (const Choice& choice : s_.reuse->of(segment)) {
        const Leg::Way way = WayOf(choice, leg.end - leg.first);
        if (IsBetter(way, leg.any)) leg.any = way;
        if (choice.windows && IsBetter(way, leg.windowed)) leg.windowed = way;
      }
      begun_.emplace_back(leg.any.choice->store, leg.any.choice->tier);
      at = leg.end;
      legs_.push_back(leg);
    }
  }
  const std::vector<Leg>& legs() const { return legs_; }

  // Of the legs up to number `last`.
  double Seconds(std::size_t last) const {
    const std::uint32_t visible = VisibleAt(last);
    double seconds = 0;
    for (std::size_t i = last + 1; i-- > 0;) {
      if (legs_[i].end <= visible || s_.reuse->window_tokens == 0) {
        return seconds + before_[i];
      }
      seconds += legs_[i].WindowedSeconds(legs_[i].end - std::max(legs_[i].first, visible));
    }
    return seconds;
  }
  void Sum() {
    before_.clear();
    double seconds = 0;
    for (const Leg& leg : legs_) before_.push_back(seconds += leg.any.seconds);
  }
  std::uint32_t VisibleAt(std::size_t last) const {
    return FirstVisible(std::uint64_t{legs_[last].end} * s_.block_tokens, s_.reuse->window_tokens,
                        s_.block_tokens);
  }

 private:
  bool IsBetter(const Leg::Way& way, const Leg::Way& than) const {
    if (than.choice == nullptr) return true;
    const Choice& a = *way.choice;
    const Choice& b = *than.choice;
    const bool alike = a.tier == b.tier && a.codec == b.codec && a.loss == b.loss;
    const auto [least, most] = std::minmax(way.seconds, than.seconds);
    if (!alike || most > kAsSoon * least) return way.seconds < than.seconds;
    const auto fetched = [&](const Choice& choice) {
      return (*s_.stores)[IndexOf(choice.store)]->fetched.last_per_s();
    };
    return std::pair(fetched(a), way.seconds) < std::pair(fetched(b), than.seconds);
  }
  Leg::Way WayOf(const Choice& choice, std::uint32_t blocks) const {
    const Worker& store = *(*s_.stores)[IndexOf(choice.store)];
    Leg::Way way = {.choice = &choice};
    way.bytes_per_s = FetchBytesPerS(s_, options_, worker_, store, choice.tier, choice.codec);
    if (s_.index != nullptr && s_.index->degraded(static_cast<StoreIndex::Node>(store.id))) {
      way.bytes_per_s /= 2;
    }
    const std::pair<WorkerId, Tier> from(choice.store, choice.tier);
    if (std::ranges::find(begun_, from) == begun_.end()) {
      way.begin_seconds =
          options_.fetch_seconds +
          static_cast<double>(store.fetch_bytes[static_cast<std::size_t>(choice.tier)]) /
              way.bytes_per_s;
    }
    way.seconds = way.begin_seconds + blocks * choice.block_bytes / way.bytes_per_s;
    return way;
  }

  const ReuseSituation& s_;
  const ReuseOptions& options_;
  const Worker& worker_;
  std::vector<Leg> legs_;
  std::vector<double> before_;  // Seconds of all up to a leg, without window groups.
  std::vector<std::pair<WorkerId, Tier>> begun_;
};

void AddFetch(const Fetch& fetch, std::vector<Fetch>& fetches) {
  if (!fetches.empty()) {
    Fetch& last = fetches.back();
    if (last.store == fetch.store && last.tier == fetch.tier && last.codec == fetch.codec &&
        last.loss == fetch.loss) {
      last.end = fetch.end;
      last.bytes += fetch.bytes;
      last.seconds += fetch.seconds;
      last.compute_seconds += fetch.compute_seconds;
      return;
    }
  }
  fetches.push_back(fetch);
}

}  // namespace

Extension Extend(const ReuseSituation& situation, const ReuseOptions& options, const Worker& worker,
                 const Behind& behind, std::vector<Fetch>* fetches) {
  const auto [own_blocks, block_seconds] = behind;
  Planner planner(situation, options, worker);
  planner.AddLegs(own_blocks);
  planner.Sum();
  const std::vector<Leg>& legs = planner.legs();
  Extension best = {.end = own_blocks};
  double saved = 0;
  std::size_t last = 0;
  for (std::size_t i = 0; i < legs.size(); ++i) {
    const double seconds = planner.Seconds(i);
    const FetchPace pace = {.fetch = seconds,
                            .compute = (legs[i].end - own_blocks) * block_seconds};
    const double saves = pace.saved();
    if (saves <= saved) continue;
    saved = saves;
    best = {legs[i].end, seconds};
    last = i;
  }
  if (fetches == nullptr || best.end == own_blocks) return best;
  const bool windows = situation.reuse->window_tokens != 0;
  const std::uint32_t visible = planner.VisibleAt(last);
  for (std::size_t i = 0; i <= last; ++i) {
    const Leg& leg = legs[i];
    const bool windowed = windows && leg.end > visible;
    const std::uint32_t window_blocks = windowed ? leg.end - std::max(leg.first, visible) : 0;
    const Choice& choice = *(windowed ? leg.windowed : leg.any).choice;
    const double bytes =
        (leg.end - leg.first) * choice.block_bytes + window_blocks * choice.window_block_bytes;
    AddFetch({.store = choice.store,
              .tier = choice.tier,
              .codec = choice.codec,
              .loss = choice.loss,
              .first = leg.first,
              .end = leg.end,
              .bytes = static_cast<std::uint64_t>(bytes),
              .seconds = windowed ? leg.WindowedSeconds(window_blocks) : leg.any.seconds,
              .compute_seconds = (leg.end - leg.first) * block_seconds},
             *fetches);
  }
  return best;
}

ReuseEstimates::ReuseEstimates(const ReuseSituation& situation, const ReuseOptions& options) {
  const Reuse& reuse = *situation.reuse;
  if (reuse.segments.empty()) return;
  first_ = reuse.segments[0].first;
  profiles_.emplace_back();
  for (const Choice& choice : reuse.choices) {
    const std::uint64_t host = (*situation.stores)[IndexOf(choice.store)]->host;
    if (std::ranges::find(profiles_, host, &Profile::host) != profiles_.end()) continue;
    if (profiles_.size() > kHostsMax) break;
    profiles_.push_back({.host = host});
  }
  for (Profile& profile : profiles_) {
    Worker worker;
    worker.host = profile.host;
    worker.link_bytes_per_s = options.peer_bytes_per_s;
    Planner planner(situation, options, worker);
    planner.AddLegs(first_);
    planner.Sum();
    const std::size_t legs = planner.legs().size();
    const std::size_t step = (legs + kPointsMax - 1) / kPointsMax;
    for (std::size_t i = step - 1; i < legs; i += step) {
      const double seconds = planner.Seconds(i);
      if (seconds < kNever) profile.points.push_back({planner.legs()[i].end, seconds});
    }
  }
}

Extension ReuseEstimates::Extend(std::uint64_t host, const Behind& behind) const {
  const auto [own_blocks, block_seconds] = behind;
  Extension best = {.end = own_blocks};
  if (profiles_.empty() || own_blocks < first_) return best;
  const Profile* profile = &profiles_[0];
  for (const Profile& other : profiles_) {
    if (other.host == host) profile = &other;
  }
  double saved = 0;
  double had = 0;  // Seconds that its own blocks would have taken.
  Point before = {.end = first_};
  for (const Point& point : profile->points) {
    if (own_blocks > before.end) {
      const double part =
          std::min(1.0, static_cast<double>(own_blocks - before.end) / (point.end - before.end));
      had = before.seconds + part * (point.seconds - before.seconds);
    }
    before = point;
    if (point.end <= own_blocks) continue;
    const double seconds = std::max(0.0, point.seconds - had);
    const FetchPace pace = {.fetch = seconds, .compute = (point.end - own_blocks) * block_seconds};
    const double saves = pace.saved();
    if (saves <= saved) continue;
    saved = saves;
    best = {point.end, seconds};
  }
  return best;
}

std::string CodecName(std::uint8_t codec) {
  // As kvstore/codecs/codec_id.h has them: tests/names_test.cc compares.
  constexpr const char* kNames[] = {"",         "raw",        "planes",    "planes+zstd",
                                    "int8",     "k8v4",       "kivi4",     "kivi2",
                                    "ans-fine", "ans-medium", "ans-coarse"};
  return codec < std::size(kNames) ? kNames[codec] : absl::StrCat("codec ", codec);
}

}  // namespace penstock::coordinator
