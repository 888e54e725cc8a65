// SPDX-License-Identifier: Apache-2.0
// How soon blocks of a class are asked for again, learned from all that is remembered, and what that
// makes one more block of this class and age worth.
//
// Of each class and bucket of age: how many blocks were asked for again at this age, over how many
// seconds blocks were this old, those still waiting included (a survival curve with censoring, as
// Kaplan and Meier's). What is seldom seen leans on its group of classes, a group on all, all on a
// rate that falls with age: with nothing learned, what was used last is worth most.
//
// The index of (class, age) is the most hits per second that holding it for some time from then on
// brings, over all such times: max over h of P(asked for within h) / E[time held, at most h] (the
// index of Gittins, 1979; hits per byte and second is the hit density of Beckmann, Chen and Cidon,
// NSDI 2018, who take the mean over all times instead).
//
// Pure arithmetic; not thread-safe. Times are seconds since any fixed moment.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace penstock::kvstore {

// Edges of the buckets of age: 0, then half octaves from 1 s to 18 h.
inline constexpr std::size_t kAgeBuckets = 34;
double AgeBegin(std::size_t bucket);
// Of the last one, which has no end, as much as what is before it.
double AgeWidth(std::size_t bucket);
std::size_t AgeBucket(double age_s);

class ReuseCurves {
 public:
  struct Options {
    std::vector<std::uint32_t> groups;  // Of each class; groups count from 0.
    // What the curve of a class's group weighs in its own, and all in a group's: as so many blocks
    // asked for again.
    double prior_events = 10;
    double half_life_s = 3600;  // After which what was seen counts half.
  };
  explicit ReuseCurves(Options options);

  // `blocks` of `cls` reach `bucket` at time `at`.
  void Enter(std::uint32_t cls, std::size_t bucket, double blocks, double at);
  // They leave it: asked for again, or not (older now, or forgotten).
  void Leave(std::uint32_t cls, std::size_t bucket, double blocks, double entered, double now);
  void Hit(std::uint32_t cls, std::size_t bucket, double blocks);
  // They were this old for all of its width, since the last look.
  void Pass(std::uint32_t cls, std::size_t bucket, double blocks);

  // Only classes that were seen have an index.
  void See(std::uint32_t cls) { classes_[cls].seen = true; }
  bool seen(std::uint32_t cls) const { return classes_[cls].seen; }
  // Computes all indexes anew, from what is known at `now`. `prior_blocks`: what recency weighs in
  // the curve of all, as so many blocks that were watched at every age.
  void Fit(double now, double prior_blocks);
  double Index(std::uint32_t cls, std::size_t bucket) const { return classes_[cls].index[bucket]; }
  std::size_t classes() const { return classes_.size(); }

 private:
  using Row = std::array<double, kAgeBuckets>;
  struct Class {
    Row events{}, seconds{};         // Over.
    Row waiting{}, waiting_since{};  // In the bucket now: blocks, and the sum of their entries.
    Row index{};
    bool seen = false;
  };

  const Options options_;
  std::vector<Class> classes_;
  std::size_t groups_ = 0;
  double fitted_ = 0;
};

}  // namespace penstock::kvstore
