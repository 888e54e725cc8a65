// SPDX-License-Identifier: Apache-2.0
#include "kvstore/eviction_curves.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"

namespace penstock::kvstore {
namespace {

// Before anything is known: so much of what reaches a bucket is asked for in it. Buckets widen with
// age, so the rate falls as 1 / age, and what was used last is worth most.
constexpr double kPriorShare = 0.03;

struct Edges {
  std::array<double, kAgeBuckets + 1> at{};
  Edges() {
    for (std::size_t i = 1; i <= kAgeBuckets; ++i)
      at[i] = std::exp2((static_cast<double>(i) - 1) / 2);
    at[kAgeBuckets] = 2 * at[kAgeBuckets - 1];
  }
};

const Edges& TheEdges() {
  static const Edges edges;
  return edges;
}

}  // namespace

double AgeBegin(std::size_t bucket) { return TheEdges().at[bucket]; }

double AgeWidth(std::size_t bucket) { return TheEdges().at[bucket + 1] - TheEdges().at[bucket]; }

std::size_t AgeBucket(double age_s) {
  const auto& at = TheEdges().at;
  const auto next = std::upper_bound(at.begin() + 1, at.begin() + kAgeBuckets, age_s);
  return static_cast<std::size_t>(next - at.begin()) - 1;
}

ReuseCurves::ReuseCurves(Options options)
    : options_(std::move(options)), classes_(options_.groups.size()) {
  CHECK(!options_.groups.empty());
  groups_ = *std::ranges::max_element(options_.groups) + 1;
}

void ReuseCurves::Enter(std::uint32_t cls, std::size_t bucket, double blocks, double at) {
  See(cls);
  classes_[cls].waiting[bucket] += blocks;
  classes_[cls].waiting_since[bucket] += blocks * at;
}

void ReuseCurves::Leave(std::uint32_t cls, std::size_t bucket, double blocks, double entered,
                        double now) {
  Class& c = classes_[cls];
  c.waiting[bucket] -= blocks;
  c.waiting_since[bucket] -= blocks * entered;
  c.seconds[bucket] += blocks * std::max(0.0, now - entered);
}

void ReuseCurves::Hit(std::uint32_t cls, std::size_t bucket, double blocks) {
  classes_[cls].events[bucket] += blocks;
}

void ReuseCurves::Pass(std::uint32_t cls, std::size_t bucket, double blocks) {
  classes_[cls].seconds[bucket] += blocks * AgeWidth(bucket);
}

void ReuseCurves::Fit(double now, double prior_blocks) {
  const double keep = std::exp2(-std::max(0.0, now - fitted_) / options_.half_life_s);
  fitted_ = now;
  struct Sums {
    Row events{}, seconds{};
  };
  Sums all;
  std::vector<Sums> groups(groups_);
  const auto seconds_of = [&](const Class& c, std::size_t b) {
    return c.seconds[b] + std::max(0.0, c.waiting[b] * now - c.waiting_since[b]);
  };
  for (std::size_t i = 0; i < classes_.size(); ++i) {
    Class& c = classes_[i];
    if (!c.seen) continue;
    for (std::size_t b = 0; b < kAgeBuckets; ++b) {
      c.events[b] *= keep;
      c.seconds[b] *= keep;
      for (Sums* sums : {&all, &groups[options_.groups[i]]}) {
        sums->events[b] += c.events[b];
        sums->seconds[b] += seconds_of(c, b);
      }
    }
  }
  const double prior = options_.prior_events;
  Row rate_all;
  for (std::size_t b = 0; b < kAgeBuckets; ++b) {
    rate_all[b] = (all.events[b] + kPriorShare * prior_blocks) /
                  (all.seconds[b] + prior_blocks * AgeWidth(b));
  }
  std::vector<Row> rate_groups(groups_);
  for (std::size_t g = 0; g < groups_; ++g) {
    for (std::size_t b = 0; b < kAgeBuckets; ++b) {
      rate_groups[g][b] =
          (groups[g].events[b] + prior) / (groups[g].seconds[b] + prior / rate_all[b]);
    }
  }
  for (std::size_t i = 0; i < classes_.size(); ++i) {
    Class& c = classes_[i];
    if (!c.seen) continue;
    const Row& rate_group = rate_groups[options_.groups[i]];
    Row hit, held;  // In a bucket, given that it was reached: P(asked for), E[seconds].
    for (std::size_t b = 0; b < kAgeBuckets; ++b) {
      const double rate = (c.events[b] + prior) / (seconds_of(c, b) + prior / rate_group[b]);
      hit[b] = -std::expm1(-rate * AgeWidth(b));
      held[b] = hit[b] / rate;
    }
    for (std::size_t from = 0; from < kAgeBuckets; ++from) {
      double left = 1, hits = 0, seconds = 0, best = 0;
      for (std::size_t b = from; b < kAgeBuckets; ++b) {
        hits += left * hit[b];
        seconds += left * held[b];
        left *= 1 - hit[b];
        best = std::max(best, hits / seconds);
      }
      c.index[from] = best;
    }
  }
}

}  // namespace penstock::kvstore
