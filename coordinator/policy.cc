// SPDX-License-Identifier: Apache-2.0
#include "coordinator/policy.h"

#include <algorithm>
#include <cmath>

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
  return worker.usable() && CanPrefill(worker, options, now) && !Excluded(work, worker);
}

bool MayDecode(const Work& work, const Worker& worker) {
  return worker.usable() && worker.sequences.value() < worker.info.sequences_max &&
         work.blocks <= worker.blocks_free() && !Excluded(work, worker);
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

// Pairs and their costs.
class Costs {
 public:
  Costs(const Work& work, const PolicyOptions& options, MonoTime now)
      : work_(work), options_(options), now_(now) {}

  double ComputeSeconds(const Worker& prefill) const {
    return (PrefillTokens(work_) - ReusedTokens(work_, prefill)) / prefill.prefill_tokens_per_s;
  }
  // What does not depend on the other worker.
  double PrefillSeconds(const Worker& prefill) const {
    return prefill.PrefillWaitSeconds(now_) + ComputeSeconds(prefill);
  }

  CostTerms DecodeTerms(const Worker& decode) const {
    CostTerms terms;
    const double full = decode.info.sequences_max;
    terms.decode_wait = decode.step_seconds;  // It joins when the step has ended that runs.
    terms.decode_load = options_.load_tokens * decode.step_seconds *
                        static_cast<double>(decode.sequences.value() + 1) / full;
    const double total = static_cast<double>(decode.info.blocks_total);
    const double left =
        (static_cast<double>(decode.blocks_free()) - static_cast<double>(work_.blocks)) / total;
    terms.memory = options_.memory_seconds * (1 / std::max(left, 1 / total) - 1);
    return terms;
  }

  // Left when compute ends: the rest of all, or of the last layer.
  double TransferSeconds(const Worker* prefill, const Worker& decode, double compute) const {
    const double bytes = static_cast<double>(PrefillTokens(work_) - ReusedTokens(work_, decode)) *
                         static_cast<double>(work_.kv_bytes_per_token);
    double rate = decode.link_bytes_per_s;
    double wait = static_cast<double>(decode.bytes_in) / rate;
    if (prefill != nullptr) {
      rate = std::min(rate, prefill->link_bytes_per_s);
      wait = std::max(wait, static_cast<double>(prefill->bytes_out) / prefill->link_bytes_per_s);
    }
    const double all = bytes / rate;
    return std::max(all / options_.layers, wait + all - compute);
  }

  Candidate Pair(const Worker& prefill, const Worker& decode) const {
    Candidate candidate = Start(prefill, decode);
    candidate.terms.transfer = TransferSeconds(&prefill, decode, candidate.terms.compute);
    return candidate;
  }
  Candidate Local(const Worker& decode) const {
    Candidate candidate = Start(decode, decode);
    candidate.terms.disturbance = options_.disturbance_share * candidate.terms.compute *
                                  static_cast<double>(decode.sequences.value() + 1);
    return candidate;
  }

 private:
  Candidate Start(const Worker& prefill, const Worker& decode) const {
    Candidate candidate;
    candidate.prefill = prefill.id;
    candidate.decode = decode.id;
    candidate.prefill_reused_tokens = ReusedTokens(work_, prefill);
    candidate.decode_reused_tokens = ReusedTokens(work_, decode);
    candidate.terms = DecodeTerms(decode);
    candidate.terms.prefill_wait = prefill.PrefillWaitSeconds(now_);
    candidate.terms.compute = ComputeSeconds(prefill);
    return candidate;
  }

  const Work& work_;
  const PolicyOptions& options_;
  const MonoTime now_;
};

struct Scored {
  double cost = 0;
  std::uint64_t last_chosen = 0;
  const Worker* worker = nullptr;
  // Ids decide at last, so that nothing depends on who is compared with whom.
  bool operator<(const Scored& other) const {
    if (cost != other.cost) return cost < other.cost;
    if (last_chosen != other.last_chosen) return last_chosen < other.last_chosen;
    return worker->id < other.worker->id;
  }
};

// The best few, in one pass.
class Shortlist {
 public:
  explicit Shortlist(std::size_t most) : most_(most) {}
  void Offer(double cost, const Worker& worker) {
    if (full() && cost > best_.back().cost) return;
    const Scored scored = {cost, worker.last_chosen, &worker};
    best_.insert(std::upper_bound(best_.begin(), best_.end(), scored), scored);
    if (best_.size() > most_) best_.pop_back();
  }
  bool full() const { return best_.size() == most_; }
  const std::vector<Scored>& best() const { return best_; }

 private:
  const std::size_t most_;
  std::vector<Scored> best_;
};

class CostPolicy final : public Policy {
 public:
  explicit CostPolicy(const PolicyOptions& options) : options_(options) {}

  Decision Choose(const Work& work, std::span<const Worker* const> prefills,
                  std::span<const Worker* const> decodes, MonoTime now) override {
    const Costs costs(work, options_, now);
    Shortlist best_prefills(options_.shortlist);
    for (const Worker* worker : prefills) {
      if (!MayPrefill(work, options_, *worker, now)) continue;
      best_prefills.Offer(costs.PrefillSeconds(*worker), *worker);
    }
    const double compute =
        best_prefills.best().empty() ? 0 : costs.ComputeSeconds(*best_prefills.best()[0].worker);
    Shortlist best_decodes(options_.shortlist);
    Shortlist best_locals(options_.shortlist);
    for (const Worker* worker : decodes) {
      if (!MayDecode(work, *worker)) continue;
      const CostTerms terms = costs.DecodeTerms(*worker);
      best_decodes.Offer(terms.total() + costs.TransferSeconds(nullptr, *worker, compute), *worker);
      if (!CanPrefill(*worker, options_, now)) continue;
      best_locals.Offer(costs.Local(*worker).terms.total(), *worker);
    }
    Decision decision = {.at = now, .candidates = {}};
    for (const Scored& decode : best_decodes.best()) {
      for (const Scored& prefill : best_prefills.best()) {
        decision.candidates.push_back(costs.Pair(*prefill.worker, *decode.worker));
      }
    }
    for (const Scored& local : best_locals.best()) {
      decision.candidates.push_back(costs.Local(*local.worker));
    }
    Rank(prefills, decodes, decision.candidates);
    return decision;
  }

 private:
  // Best first. Among those that are as good as the best, the one whose workers were chosen longest
  // ago: what tells them apart is less than the predictions' error.
  void Rank(std::span<const Worker* const> prefills, std::span<const Worker* const> decodes,
            std::vector<Candidate>& candidates) const {
    if (candidates.empty()) return;
    std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
      const double costs[] = {a.terms.total(), b.terms.total()};
      if (costs[0] != costs[1]) return costs[0] < costs[1];
      return std::pair(a.decode, a.prefill) < std::pair(b.decode, b.prefill);
    });
    const double best = candidates[0].terms.total();
    const double tie = best + std::max(options_.tie_seconds, best * options_.tie_share);
    const auto chosen = [](std::span<const Worker* const> workers, WorkerId id) {
      const auto at = std::lower_bound(workers.begin(), workers.end(), id,
                                       [](const Worker* w, WorkerId i) { return w->id < i; });
      return (*at)->last_chosen;
    };
    const auto age = [&](const Candidate& c) {
      return std::pair(chosen(decodes, c.decode),
                       chosen(c.local() ? decodes : prefills, c.prefill));
    };
    std::size_t winner = 0;
    for (std::size_t i = 1; i < candidates.size() && candidates[i].terms.total() <= tie; ++i) {
      if (age(candidates[i]) < age(candidates[winner])) winner = i;
    }
    std::rotate(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(winner),
                candidates.begin() + static_cast<std::ptrdiff_t>(winner) + 1);
    if (candidates.size() > options_.candidates_kept) candidates.resize(options_.candidates_kept);
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
      best_prefills.Offer(by_load_ ? worker->PrefillWaitSeconds(now) : Turn(*worker), *worker);
    }
    const bool local = best_prefills.best().empty();
    for (const Worker* worker : decodes) {
      if (!MayDecode(work, *worker)) continue;
      if (local && !CanPrefill(*worker, options_, now)) continue;
      const double load = static_cast<double>(worker->sequences.value()) /
                          static_cast<double>(worker->info.sequences_max);
      best_decodes.Offer(by_load_ ? load : Turn(*worker), *worker);
    }
    Decision decision = {.at = now, .candidates = {}};
    if (best_decodes.best().empty()) return decision;
    const Worker& decode = *best_decodes.best()[0].worker;
    decision.candidates.push_back(local ? costs.Local(decode)
                                        : costs.Pair(*best_prefills.best()[0].worker, decode));
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
  const bool remote = std::any_of(prefills.begin(), prefills.end(), [&](const Worker* worker) {
    return MayPrefill(work, options, *worker, now);
  });
  return std::any_of(decodes.begin(), decodes.end(), [&](const Worker* worker) {
    return MayDecode(work, *worker) && (remote || CanPrefill(*worker, options, now));
  });
}

}  // namespace penstock::coordinator
