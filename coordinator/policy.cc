// SPDX-License-Identifier: Apache-2.0
#include "coordinator/policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "base/fetch_pace.h"

namespace penstock::coordinator {
namespace {

bool Excluded(const Work& work, const Worker& worker) {
  return std::find(work.excluded.begin(), work.excluded.end(), worker.id) != work.excluded.end();
}

bool CanPrefill(const Worker& worker, const PolicyOptions& options, MonoTime now) {
  return worker.prefills == 0 ||
         (worker.prefills < options.prefills_max &&
          worker.PrefillWaitSeconds(now) <= options.prefill_backlog_seconds);
}

bool MayPrefill(const Work& work, const PolicyOptions& options, const Worker& worker,
                MonoTime now) {
  // The last token is the decode worker's: of a prompt of one there is nothing to hand over.
  return work.prompt_tokens > 1 && worker.usable() && CanPrefill(worker, options, now) &&
         !Excluded(work, worker);
}

bool MayDecode(const Work& work, const Worker& worker) {
  return worker.usable() && worker.sequences.value() < worker.sequences_max &&
         work.blocks <= worker.blocks_free() && !Excluded(work, worker);
}

bool Forbidden(const Work& work) { return work.forbidden != nullptr && !work.forbidden->empty(); }

bool Allowed(const Work& work, const Worker& prefill, const Worker& decode) {
  return !Forbidden(work) || !work.forbidden->contains(std::pair(prefill.id, decode.id));
}

// The prompt but for its last token: what has to be computed somewhere.
std::uint32_t PrefillTokens(const Work& work) {
  return work.prompt_tokens > 0 ? work.prompt_tokens - 1 : 0;
}

std::uint32_t ReusedTokens(const Work& work, const Worker& worker) {
  const std::size_t i = IndexOf(worker.id);
  if (i >= work.usable_blocks.size()) return 0;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(
      std::uint64_t{work.usable_blocks[i]} * work.block_tokens, PrefillTokens(work)));
}

// How a worker comes to the KV of a prompt.
struct Filling {
  double compute = 0;
  double fetch = 0;
  bool beside = false;  // The first of what is fetched is computed meanwhile.
  std::uint32_t fetched_tokens = 0;
  double seconds() const { return compute + fetch; }
  double computing() const { return compute + (beside ? fetch : 0); }
};

// Pairs and their costs.
class Costs {
 public:
  Costs(const Work& work, const PolicyOptions& options, MonoTime now)
      : work_(work), options_(options), now_(now) {
    if (work_.reuse != nullptr) estimates_.emplace(*work_.reuse, options_.reuse);
  }

  // Of the many: exact where nothing can be fetched.
  Filling Estimate(const Worker& prefill) const {
    const std::uint32_t reused = ReusedTokens(work_, prefill);
    if (!estimates_.has_value()) return {.compute = ComputeSeconds(prefill, reused)};
    return With(estimates_->Extend(prefill.host, BehindOwn(prefill, reused)), reused, prefill);
  }
  Filling Exact(const Worker& prefill, std::vector<Fetch>* fetches = nullptr) const {
    const std::uint32_t reused = ReusedTokens(work_, prefill);
    if (work_.reuse == nullptr) return {.compute = ComputeSeconds(prefill, reused)};
    return With(Extend(*work_.reuse, options_.reuse, prefill, BehindOwn(prefill, reused), fetches),
                reused, prefill);
  }
  double WaitSeconds(const Worker& prefill) const { return prefill.PrefillWaitSeconds(now_); }

  CostTerms DecodeTerms(const Worker& decode) const {
    CostTerms terms;
    terms.decode_wait = decode.step_seconds;  // It joins when the step has ended that runs.
    terms.decode_load = options_.load_tokens * decode.step_seconds *
                        static_cast<double>(decode.sequences.value() + 1) / decode.sequences_max;
    const double total = static_cast<double>(decode.blocks_total);
    const double left = static_cast<double>(decode.blocks_free() - work_.blocks);
    terms.memory = options_.memory_seconds * (total / std::max(left, 1.0) - 1);
    return terms;
  }

  double DisturbanceSeconds(const Worker& decode, double compute) const {
    const double beyond = compute - options_.long_tokens / decode.prefill_tokens_per_s;
    return options_.disturbance_share * compute *
               static_cast<double>(decode.sequences.value() + 1) +
           options_.long_disturbance_share * std::max(0.0, beyond);
  }

  // A decode worker whose own terms are `own`, and which prefills for itself.
  double LocalSeconds(const Worker& worker, double own, const Filling& filling) const {
    return own + WaitSeconds(worker) + filling.seconds() +
           DisturbanceSeconds(worker, filling.computing());
  }

  // Left when compute ends: the rest of all, or of the last layer.
  double TransferSeconds(const Worker* prefill, const Worker& decode, double compute) const {
    const double bytes = static_cast<double>(PrefillTokens(work_) - ReusedTokens(work_, decode)) *
                         static_cast<double>(work_.kv_bytes_per_token);
    double rate = decode.link_bytes_per_s;
    double wait = static_cast<double>(decode.bytes_in) / rate;
    if (prefill != nullptr) {
      rate = std::min({rate, prefill->link_bytes_per_s, PairRate(*prefill, decode)});
      wait = std::max(wait, static_cast<double>(prefill->bytes_out) / prefill->link_bytes_per_s);
    }
    const double all = bytes / rate;
    return std::max(all / options_.layers, wait + all - compute);
  }

  double PairRate(const Worker& prefill, const Worker& decode) const {
    constexpr double kUnknown = std::numeric_limits<double>::infinity();
    if (work_.rates == nullptr || work_.rates->empty()) return kUnknown;
    const auto at = work_.rates->find(std::pair(prefill.id, decode.id));
    return at == work_.rates->end() ? kUnknown : at->second;
  }

  // As far as the prefill worker alone decides it: all of the prompt, to a link that is free.
  double SendSeconds(const Worker& prefill, double compute) const {
    const double bytes = PrefillTokens(work_) * static_cast<double>(work_.kv_bytes_per_token) +
                         static_cast<double>(prefill.bytes_out);
    return std::max(0.0, bytes / prefill.link_bytes_per_s - compute);
  }

  // With all its terms; the same worker twice: local.
  Candidate Of(const Worker& prefill, const Worker& decode, bool with_fetches = false) const {
    Candidate candidate;
    candidate.prefill = prefill.id;
    candidate.decode = decode.id;
    candidate.prefill_reused_tokens = ReusedTokens(work_, prefill);
    candidate.decode_reused_tokens = ReusedTokens(work_, decode);
    candidate.terms = DecodeTerms(decode);
    candidate.terms.prefill_wait = WaitSeconds(prefill);
    const Filling filling = Exact(prefill, with_fetches ? &candidate.fetches : nullptr);
    candidate.fetched_tokens = filling.fetched_tokens;
    candidate.terms.fetch = filling.fetch;
    candidate.terms.compute = filling.compute;
    if (candidate.local()) {
      candidate.terms.disturbance = DisturbanceSeconds(decode, filling.computing());
    } else {
      candidate.terms.transfer = TransferSeconds(&prefill, decode, filling.seconds());
    }
    return candidate;
  }

 private:
  double ComputeSeconds(const Worker& prefill, std::uint32_t had_tokens) const {
    return (PrefillTokens(work_) - had_tokens) / prefill.prefill_tokens_per_s;
  }
  Behind BehindOwn(const Worker& prefill, std::uint32_t reused_tokens) const {
    return {.own_blocks = reused_tokens / work_.block_tokens,
            .block_seconds = work_.block_tokens / prefill.prefill_tokens_per_s};
  }
  Filling With(const Extension& extension, std::uint32_t reused_tokens,
               const Worker& prefill) const {
    const std::uint32_t had = extension.end * work_.block_tokens;
    if (had <= reused_tokens) return {.compute = ComputeSeconds(prefill, reused_tokens)};
    const FetchPace pace = {.fetch = extension.seconds,
                            .compute = (had - reused_tokens) / prefill.prefill_tokens_per_s};
    return {.compute = ComputeSeconds(prefill, had),
            .fetch = pace.together(),
            .beside = pace.beside(),
            .fetched_tokens = had - reused_tokens};
  }

  const Work& work_;
  const PolicyOptions& options_;
  const MonoTime now_;
  std::optional<ReuseEstimates> estimates_;
};

struct Scored {
  double cost = 0;
  // Of the cost, what a pair shares with no other: fetch and compute, or a decode worker's.
  double own = 0;
  const Worker* worker = nullptr;
  // Ids decide at last, so that nothing depends on who is compared with whom.
  bool operator<(const Scored& other) const {
    return std::tuple(cost, worker->last_chosen, worker->id) <
           std::tuple(other.cost, other.worker->last_chosen, other.worker->id);
  }
};

// The best few, in one pass.
class Shortlist {
 public:
  explicit Shortlist(std::size_t most) : most_(most) { best_.reserve(most + 1); }
  void Offer(double cost, const Worker& worker, double own = 0) {
    if (best_.size() == most_ && cost > best_.back().cost) return;
    const Scored scored = {cost, own, &worker};
    best_.insert(std::upper_bound(best_.begin(), best_.end(), scored), scored);
    if (best_.size() > most_) best_.pop_back();
  }
  const std::vector<Scored>& best() const { return best_; }
  template <typename How>
  void Revise(const How& how) {
    for (Scored& scored : best_) how(scored);
  }

 private:
  const std::size_t most_;
  std::vector<Scored> best_;
};

// Calls `see` with each, having asked for the memory of those to come.
template <typename See>
void ForEach(std::span<const Worker* const> workers, const See& see) {
  constexpr std::size_t kAhead = 6;
  for (std::size_t i = 0; i < workers.size(); ++i) {
    if (i + kAhead < workers.size()) {
      const char* const next = reinterpret_cast<const char*>(workers[i + kAhead]);
      __builtin_prefetch(next);
      __builtin_prefetch(next + 64);
      __builtin_prefetch(next + 128);
    }
    see(*workers[i]);
  }
}

class CostPolicy final : public Policy {
 public:
  explicit CostPolicy(const PolicyOptions& options) : options_(options) {}

  Decision Choose(const Work& work, std::span<const Worker* const> prefills,
                  std::span<const Worker* const> decodes, MonoTime now) override {
    const Costs costs(work, options_, now);
    Shortlist best_prefills(options_.shortlist);
    ForEach(prefills, [&](const Worker& worker) {
      if (!MayPrefill(work, options_, worker, now)) return;
      const double filling = costs.Estimate(worker).seconds();
      best_prefills.Offer(costs.WaitSeconds(worker) + filling + costs.SendSeconds(worker, filling),
                          worker, filling);
    });
    const double filling = best_prefills.best().empty() ? 0 : best_prefills.best()[0].own;
    Shortlist best_decodes(options_.shortlist);
    Shortlist best_locals(options_.shortlist);
    ForEach(decodes, [&](const Worker& worker) {
      if (!MayDecode(work, worker)) return;
      const double own = costs.DecodeTerms(worker).total();
      best_decodes.Offer(own + costs.TransferSeconds(nullptr, worker, filling), worker, own);
      if (!CanPrefill(worker, options_, now)) return;
      best_locals.Offer(costs.LocalSeconds(worker, own, costs.Estimate(worker)), worker, own);
    });
    if (work.reuse != nullptr) {
      best_prefills.Revise(
          [&](Scored& scored) { scored.own = costs.Exact(*scored.worker).seconds(); });
      best_locals.Revise([&](Scored& scored) {
        scored.cost = costs.LocalSeconds(*scored.worker, scored.own, costs.Exact(*scored.worker));
      });
    }
    std::vector<Pair> pairs;
    pairs.reserve(best_decodes.best().size() * best_prefills.best().size() +
                  best_locals.best().size());
    for (const Scored& decode : best_decodes.best()) {
      for (const Scored& prefill : best_prefills.best()) {
        if (!Allowed(work, *prefill.worker, *decode.worker)) continue;
        const double transfer = costs.TransferSeconds(prefill.worker, *decode.worker, prefill.own);
        pairs.push_back({decode.own + costs.WaitSeconds(*prefill.worker) + prefill.own + transfer,
                         prefill.worker, decode.worker});
      }
    }
    for (const Scored& local : best_locals.best()) {
      pairs.push_back({local.cost, local.worker, local.worker});
    }
    // All of the best may be forbidden; somewhere there may be one that is not.
    if (pairs.empty() && Forbidden(work)) pairs = AllPairs(costs, work, prefills, decodes, now);
    Rank(pairs);
    Decision decision = {.at = now, .candidates = {}};
    decision.candidates.reserve(pairs.size());
    for (const Pair& pair : pairs) {
      decision.candidates.push_back(
          costs.Of(*pair.prefill, *pair.decode, decision.candidates.empty()));
    }
    return decision;
  }

 private:
  struct Pair {
    double cost;
    const Worker* prefill;
    const Worker* decode;
    bool operator<(const Pair& other) const {
      return std::tuple(cost, decode->id, prefill->id) <
             std::tuple(other.cost, other.decode->id, other.prefill->id);
    }
    std::pair<std::uint64_t, std::uint64_t> age() const {
      return {decode->last_chosen, prefill->last_chosen};
    }
  };

  std::vector<Pair> AllPairs(const Costs& costs, const Work& work,
                             std::span<const Worker* const> prefills,
                             std::span<const Worker* const> decodes, MonoTime now) const {
    std::vector<Pair> pairs;
    for (const Worker* prefill : prefills) {
      if (!MayPrefill(work, options_, *prefill, now)) continue;
      for (const Worker* decode : decodes) {
        if (!MayDecode(work, *decode) || !Allowed(work, *prefill, *decode)) continue;
        pairs.push_back({costs.Of(*prefill, *decode).terms.total(), prefill, decode});
      }
    }
    return pairs;
  }

  // The best few, best first. Among those that are as good as the best, the one whose workers were
  // chosen longest ago: what tells them apart is less than the predictions' error.
  void Rank(std::vector<Pair>& pairs) const {
    if (pairs.empty()) return;
    const double best = std::min_element(pairs.begin(), pairs.end())->cost;
    const double tie = best + std::max(options_.tie_seconds, best * options_.tie_share);
    Pair* winner = nullptr;
    for (Pair& pair : pairs) {
      if (pair.cost > tie) continue;
      if (winner == nullptr || std::pair(pair.age(), pair) < std::pair(winner->age(), *winner)) {
        winner = &pair;
      }
    }
    std::swap(pairs[0], *winner);
    const std::size_t kept = std::min<std::size_t>(pairs.size(), options_.candidates_kept);
    std::partial_sort(pairs.begin() + 1, pairs.begin() + static_cast<std::ptrdiff_t>(kept),
                      pairs.end());
    pairs.resize(kept);
  }

  const PolicyOptions options_;
};

// The first worker with room for which `less` is least, or local where no prefill worker has room.
class SimplePolicy final : public Policy {
 public:
  SimplePolicy(const PolicyOptions& options, bool by_load) : options_(options), by_load_(by_load) {}

  Decision Choose(const Work& work, std::span<const Worker* const> prefills,
                  std::span<const Worker* const> decodes, MonoTime now) override {
    const Costs costs(work, options_, now);
    Shortlist best_prefills(1);
    Shortlist best_decodes(1);
    for (const Worker* worker : prefills) {
      if (!MayPrefill(work, options_, *worker, now)) continue;
      if (Forbidden(work) && std::ranges::none_of(decodes, [&](const Worker* decode) {
            return MayDecode(work, *decode) && Allowed(work, *worker, *decode);
          })) {
        continue;
      }
      best_prefills.Offer(by_load_ ? worker->PrefillWaitSeconds(now) : Turn(*worker), *worker);
    }
    const bool local = best_prefills.best().empty();
    for (const Worker* worker : decodes) {
      if (!MayDecode(work, *worker)) continue;
      if (local && !CanPrefill(*worker, options_, now)) continue;
      if (!local && !Allowed(work, *best_prefills.best()[0].worker, *worker)) continue;
      const double load = static_cast<double>(worker->sequences.value()) /
                          static_cast<double>(worker->sequences_max);
      best_decodes.Offer(by_load_ ? load : Turn(*worker), *worker);
    }
    Decision decision = {.at = now, .candidates = {}};
    if (best_decodes.best().empty()) return decision;
    const Worker& decode = *best_decodes.best()[0].worker;
    const Worker& prefill = local ? decode : *best_prefills.best()[0].worker;
    decision.candidates.push_back(costs.Of(prefill, decode, true));
    return decision;
  }

 private:
  static double Turn(const Worker& worker) { return static_cast<double>(worker.last_chosen); }

  const PolicyOptions options_;
  const bool by_load_;
};

}  // namespace

std::unique_ptr<Policy> Policy::Make(const PolicyOptions& options) {
  if (options.name == "cost") return std::make_unique<CostPolicy>(options);
  if (options.name == "round-robin") return std::make_unique<SimplePolicy>(options, false);
  if (options.name == "least-loaded") return std::make_unique<SimplePolicy>(options, true);
  return nullptr;
}

bool HasRoom(const Work& work, const PolicyOptions& options,
             std::span<const Worker* const> prefills, std::span<const Worker* const> decodes,
             MonoTime now) {
  std::vector<const Worker*> senders;
  for (const Worker* worker : prefills) {
    if (!MayPrefill(work, options, *worker, now)) continue;
    senders.push_back(worker);
    if (!Forbidden(work)) break;  // Any will do.
  }
  return std::any_of(decodes.begin(), decodes.end(), [&](const Worker* worker) {
    return MayDecode(work, *worker) && (CanPrefill(*worker, options, now) ||
                                        std::ranges::any_of(senders, [&](const Worker* sender) {
                                          return Allowed(work, *sender, *worker);
                                        }));
  });
}

}  // namespace penstock::coordinator
