// SPDX-License-Identifier: Apache-2.0
// One worker as the coordinator sees it: who it is, what it measured, and what it was given to do.
// Store nodes are members like workers, and have the same struct; they serve every model, and get no
// requests.
//
// What was given is booked when it is decided, not when the worker reports it: a hundred requests
// that arrive between two reports see each other. Plain values, owned by Membership.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/copy_event.h"
#include "base/key.h"
#include "base/loss_class.h"
#include "base/store_load.h"
#include "base/time.h"

namespace penstock::coordinator {

// Dense: numbers are used again, lowest first, when a worker has gone. Never sent to anyone.
enum class WorkerId : std::uint32_t {};
constexpr WorkerId kNoWorker{0xffffffff};
inline std::size_t IndexOf(WorkerId id) { return static_cast<std::size_t>(id); }

enum class Role : std::uint8_t { kPrefill, kDecode, kStore };
inline const char* ToString(Role role) {
  return role == Role::kPrefill ? "prefill" : role == Role::kDecode ? "decode" : "store";
}

// Names one life of a worker in every message about it.
struct WorkerRef {
  std::string name;         // Unique in the deployment; 1 to 64 bytes.
  std::uint64_t epoch = 0;  // Greater in every life of that name.
};

// What workers of a model must have in common, by name: compared field by field, in order.
using Identity = std::vector<std::pair<std::string, std::string>>;

struct Registration {
  WorkerRef ref = {};
  Role role = Role::kPrefill;
  std::string model = {};          // As requests name it; 1 to 256 bytes. None of a store node.
  Identity identity = {};          // Equal for all workers of a model.
  std::uint32_t block_tokens = 0;  // Likewise.
  std::string endpoint = {};       // Handed to gateways.
  // Handed to prefill workers: of its transfer endpoint, and the life that its grants belong to.
  std::string transfer_address = {};
  std::uint64_t transfer_epoch = 0;
  std::int32_t context_tokens = 0;  // Of one sequence at most; 0: not said.
  // For people.
  std::string device = {};
  std::uint64_t pid = 0;
  std::uint64_t kv_bytes_per_token = 0;
  std::uint64_t blocks_total = 0;   // Its pool.
  std::uint32_t sequences_max = 0;  // Of a decode worker: running together.
  // None: its blocks are not in stores. Equal for all workers of a model that have any.
  std::vector<StoredGroup> groups = {};
  // Copies by other codecs are not fetched. Of the exact class: lossless ones.
  std::vector<CodecLoss> codecs = {};
  // Guesses until it has measured; above 0. A decode worker prefills too.
  double prefill_tokens_per_s = 1000;
  double link_bytes_per_s = 1e9;
  double step_seconds = 0.02;  // One decode step of a full batch.
};

// What a worker says of itself, again and again. 0: not measured.
struct LoadReport {
  bool ready = true;  // Its model is loaded.
  std::uint32_t sequences = 0;
  std::uint64_t blocks_used = 0;  // By live sequences; those that can be evicted are free.
  double prefill_tokens_per_s = 0;
  double link_bytes_per_s = 0;
  double step_seconds = 0;
  // For people.
  std::uint64_t bytes_held = 0;
  std::uint64_t bytes_draining = 0;
  std::vector<FetchRate> fetches = {};
  std::vector<TierLoad> tiers = {};  // Of a store node.
};

// A quantity of which the worker reports the whole and the coordinator books its own part. What
// others use, and what grew since it was booked, is in the report; what was decided since is not.
class Gauge {
 public:
  void Add(std::uint64_t n) {
    own_ += n;
    since_report_ += static_cast<std::int64_t>(n);
  }
  void Remove(std::uint64_t n) {
    own_ -= n;
    since_report_ -= static_cast<std::int64_t>(n);
  }
  void Report(std::uint64_t n) {
    reported_ = static_cast<std::int64_t>(n);
    since_report_ = 0;
  }
  std::uint64_t own() const { return own_; }
  std::uint64_t value() const {
    return std::max(
        own_, static_cast<std::uint64_t>(std::max<std::int64_t>(0, reported_ + since_report_)));
  }

 private:
  std::uint64_t own_ = 0;
  std::int64_t reported_ = 0;
  std::int64_t since_report_ = 0;
};

// How many bytes a second, over some seconds that have passed.
class RateMeter {
 public:
  void Add(std::uint64_t bytes, MonoTime now) {
    per_s_ = PerS(now) + static_cast<double>(bytes) / kSeconds;
    at_ = now;
  }
  double PerS(MonoTime now) const {
    return per_s_ == 0 ? 0 : per_s_ * std::exp(-ToSeconds(now - at_) / kSeconds);
  }
  // When it was last added to.
  double last_per_s() const { return per_s_; }

 private:
  static constexpr double kSeconds = 5;
  double per_s_ = 0;
  MonoTime at_ = {};
};

// What every decision reads of every worker comes first: a few cache lines.
struct alignas(64) Worker {
  WorkerId id = kNoWorker;
  bool live = false;
  bool ready = false;
  bool draining = false;
  bool gone = false;                 // Its life is being ended.
  bool away = false;                 // Nobody reaches it; a report ends that.
  std::uint32_t sequences_max = 0;   // As registered.
  std::uint32_t prefills = 0;        // Given and not yet computed.
  std::uint64_t prefill_tokens = 0;  // Of those.
  MonoTime prefill_since = {};       // When the one it computes now began, as far as we can tell.
  double prefill_tokens_per_s = 0;
  double link_bytes_per_s = 0;
  double step_seconds = 0;
  std::uint64_t last_chosen = 0;  // Number of the last decision for it: ties go to the least.
  std::uint64_t bytes_out = 0;    // KV to be sent, and to be received.
  std::uint64_t bytes_in = 0;
  std::uint64_t blocks_total = 0;  // As registered.
  Gauge sequences = {};            // Reserved or running.
  Gauge blocks = {};               // For those, with the answers expected.
  std::uint64_t host = 0;          // Of its transfer address, hashed; 0: it does not say.

  double pair_bytes_per_s = 0;  // The best of its pairs as they were measured.
  MonoTime session_end = {};
  Registration info = {};
  LoadReport load = {};  // The last one.

  WorkerId keeper = kNoWorker;  // Of a worker: the store node that is to keep its blocks.
  std::uint32_t keeps_for = 0;  // Of a store node: so many workers.
  // Of a worker: what it measured of fetching, by store node and codec, and by tier.
  std::map<std::pair<WorkerId, std::uint8_t>, std::array<double, kTiers>> fetch_bytes_per_s = {};
  // Of a store node, by tier: what it measured of reading; and what plans are to fetch.
  std::array<double, kTiers> tier_bytes_per_s = {};
  std::array<std::uint64_t, kTiers> fetch_bytes = {};
  RateMeter fetched = {};  // What plans were to fetch, of late.

  // It may be usable again before its session ends.
  bool may_return() const { return live && away && !draining && !gone; }
  bool usable() const { return live && ready && !draining && !gone; }
  std::uint64_t blocks_free() const {
    return blocks_total - std::min(blocks_total, blocks.value());
  }

  // Until a prompt given now would begin. The running one counts as far along as time says, but
  // never as done: a worker that hangs must not look idle.
  double PrefillWaitSeconds(MonoTime now) const {
    if (prefills == 0) return 0;
    const auto tokens = static_cast<double>(prefill_tokens);
    const double past = std::max(0.0, ToSeconds(now - prefill_since)) * prefill_tokens_per_s;
    return (tokens - std::min(past, tokens / prefills)) / prefill_tokens_per_s;
  }
  void BeginPrefill(std::uint64_t tokens, MonoTime now) {
    if (prefills++ == 0) prefill_since = now;
    prefill_tokens += tokens;
  }
  void EndPrefill(std::uint64_t tokens, MonoTime now) {
    --prefills;
    prefill_tokens -= tokens;
    prefill_since = now;
  }
};

}  // namespace penstock::coordinator
