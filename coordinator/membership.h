// SPDX-License-Identifier: Apache-2.0
// Who is alive. A worker registers one life (name, epoch), renews its session before it ends, and
// leaves or is forgotten; nothing of an ended life is believed again.
//
// Workers of one model must be interchangeable: every field of the identity, block size, bytes per
// token and names in stores are those of the first that registered, for as long as one of them
// lives. Store nodes are of no model.
//
// Owned by the coordinator's loop; not thread-safe; `now` is an argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/time.h"
#include "coordinator/worker.h"

namespace penstock::coordinator {

class Membership {
 public:
  struct Options {
    Duration ttl = std::chrono::seconds(5);
    std::size_t workers_max = 4096;
    std::size_t ended_max = 65536;  // Names whose last epoch is remembered after their end.
  };
  explicit Membership(const Options& options) : options_(options) {}

  // May this life begin? INVALID_ARGUMENT: a field out of range. ABORTED: the epoch is not above
  // that of a life which ended, or which lives and is another. FAILED_PRECONDITION: unlike the
  // others of its model; names the field and both values. RESOURCE_EXHAUSTED: workers_max live.
  // OK for a life that lives already: a repeated message.
  absl::Status Check(const Registration& registration) const;
  // After Check, and after End of an earlier life of that name. The worker is not ready yet.
  WorkerId Add(const Registration& registration, MonoTime now);
  void End(WorkerId id);
  // That life, and those before it, have ended: another coordinator saw it. One that lives here goes
  // on until End.
  void Restore(const WorkerRef& ended);

  // ABORTED: that life has ended or never began; the worker must register with a higher epoch.
  absl::StatusOr<WorkerId> Resolve(const WorkerRef& ref) const;
  // The live worker of that name, of whichever epoch; kNoWorker without one.
  WorkerId Find(const std::string& name) const;
  void Renew(WorkerId id, MonoTime now);
  // The live worker whose session ends first, if it has ended at `now`; else kNoWorker.
  WorkerId FirstExpired(MonoTime now) const;
  MonoTime NextExpiry() const;  // MonoTime::max() when no one is there.

  // At its address for as long as it lives.
  Worker& at(WorkerId id) { return workers_[IndexOf(id)]; }
  const Worker& at(WorkerId id) const { return workers_[IndexOf(id)]; }
  std::size_t live() const { return by_name_.size(); }

 private:
  struct Model {
    Registration first;
    Registration grouped;  // The first with groups.
    std::size_t workers = 0;
  };

  const Options options_;
  std::deque<Worker> workers_;
  std::set<std::uint32_t> free_;
  absl::flat_hash_map<std::string, WorkerId> by_name_;
  std::map<std::string, Model> models_;
  std::set<std::pair<MonoTime, WorkerId>> expiries_;
  absl::flat_hash_map<std::string, std::uint64_t> ended_;  // Name -> last epoch.
  std::deque<std::string> ended_order_;                    // May name one twice; oldest first.
};

}  // namespace penstock::coordinator
