// SPDX-License-Identifier: Apache-2.0
// What a coordinator that leads keeps in the store, so that another can go on where it ended. Under
// `prefix`:
//
//   epochs/NAME    the last life of that worker that has ended: a number. None before and none with
//                  it is believed again.
//   workers/NAME   the life that is known now, as JSON: role, model, endpoint, session_epoch,
//                  transfer_epoch, transfer_address. Bound to a lease of the session's length, which
//                  is kept alive as the worker reports; gone when the session ends.
//
// A new life is known to be durable when all before it are written as ended. Nothing of requests is
// kept: gateways ask again.
//
// Writes are batched, one transaction at a time, in the background; what could not be written is
// tried again until it is. Each holds only while the leader's key is as old as Load said: who does
// not lead any more changes nothing. While the store does not answer nobody waits for it.
//
// On a loop's thread. Bounded: one entry per live worker, ended_max for names that have ended; the
// oldest are forgotten, here and in the store.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/event_loop.h"
#include "base/time.h"
#include "coordinator/worker.h"
#include "rpc/etcd.h"

namespace penstock::coordinator {

class DurableState {
 public:
  struct Options {
    std::string prefix;  // Ends with '/'.
    std::string leader_key;
    Duration ttl = std::chrono::seconds(5);  // Of sessions.
    std::size_t ended_max = 65536;
    Duration retry_min = std::chrono::milliseconds(100);  // Then doubled.
    Duration retry_max = std::chrono::seconds(2);
  };
  struct Loaded {
    std::vector<WorkerRef> ended;  // With the last epoch that has.
    // Of workers/: those that an earlier coordinator knew. Only what people are shown is set.
    std::vector<Registration> workers;
  };

  // `fenced`: the leader's key is another's, or gone. `loop` and `etcd` outlive it.
  DurableState(Loop& loop, rpc::Etcd& etcd, Options options, std::function<void()> fenced);
  ~DurableState();

  // First, and again after each new leadership: reads all there is; what is known here and not
  // there is written. `leader_revision` is that of the leader's key. Values that make no sense are
  // left out and logged.
  void Load(std::int64_t leader_revision, std::function<void(absl::StatusOr<Loaded>)> done);

  // Whether all lives before this one are written as ended.
  bool IsDurable(const WorkerRef& ref) const;
  // That life is known from now on. `done` (or null), never from inside: it is durable, or the
  // store is away and it is written later.
  void Began(const Registration& registration, std::function<void()> done);
  void Reported(const WorkerRef& ref);
  void Ended(const WorkerRef& ref);

  std::uint64_t errors() const { return errors_; }
  std::uint64_t late() const { return late_; }  // Done before they were durable.

 private:
  struct Entry {
    std::uint64_t ended = 0;   // The last life that has.
    std::uint64_t stored = 0;  // Likewise, as the store knows it.
    std::uint64_t epoch = 0;   // Of the life that is known; 0: none.
    std::string value = {};    // Of workers/.
    rpc::EtcdLease lease = 0;
    MonoTime renewed{};
    bool renewing = false;
    bool forget = false;
    std::uint64_t version = 0;  // Of what is wanted; grows with each change.
    std::uint64_t idle = 0;     // As it is in idle_; 0: a life is known.
    std::vector<std::pair<std::uint64_t, std::function<void()>>> waiting = {};  // Epoch, done.
  };
  void Change(const std::string& name, Entry& entry);
  void SetIdle(const std::string& name, Entry& entry, bool idle);
  void Flush();
  void Write(const std::vector<std::string>& names);
  // Name -> what was written: of which version, and its ended life.
  using Written = std::map<std::string, std::pair<std::uint64_t, std::uint64_t>>;
  void OnWritten(const Written& written);
  void RenewLeases(const Written& written);
  void Fail(const absl::Status& why);
  Loaded Merge(const std::vector<rpc::EtcdKey>& found);

  Loop& loop_;
  rpc::Etcd& etcd_;
  const Options options_;
  const std::function<void()> fenced_;
  const std::shared_ptr<DurableState*> self_ = std::make_shared<DurableState*>(this);
  std::int64_t leader_revision_ = 0;  // 0: nothing has been read.
  std::map<std::string, Entry> entries_;
  std::set<std::string> changed_;                         // To be written.
  std::set<std::pair<std::uint64_t, std::string>> idle_;  // Without a life; oldest first.
  std::uint64_t idle_next_ = 1;
  bool flushing_ = false;
  int leases_renewed_ = 0;  // Since the last write that went well.
  bool away_ = false;
  Duration pause_;
  Loop::TimerId timer_{};
  std::uint64_t errors_ = 0;
  std::uint64_t late_ = 0;
};

}  // namespace penstock::coordinator
