// SPDX-License-Identifier: Apache-2.0
// Which of several coordinators leads: the one whose name is under a key of the store. The key is
// bound to a lease that its holder keeps alive; when the lease ends the others see the key gone,
// and the first to write it leads.
//
//   state     event                                        next
//   standby   the key is gone, and ours is written         leading: on_won
//   standby   another's key                                standby: leader() says whose
//   leading   our key                                      leading; the lease is kept alive
//   leading   no key: the lease had ended (the store was   leading: writes the key again, which
//             restored, or could not be reached)           begins a new term: on_won
//   leading   another's key                                standby: on_lost
//   leading   no answer, for longer than the lease, and    standby: on_lost
//             nobody follows, for alone_for
//
// Why no two coordinators ever command one worker. At most one holds the key: the store sees to it.
// Who held it may not know yet that it does no longer, and goes on leading, on purpose: a store
// that is away must not stop the cluster, and from one end of a broken line nobody can tell a store
// that is away from one that others reach. What is exclusive is therefore not decided by clocks but
// where it is used: a worker has one stream, to one coordinator. Each leadership has a term that is
// greater than those before it (the revision at which the store made the key); a worker that has
// followed a term follows no lower one, so it never returns from a new leader to an old one, and
// what the old one still wants reaches it over no stream. The same holds for gateways. And the
// state that outlives a coordinator is written under the condition that the key is still the
// writer's (durable_state.h), so an old leader changes nothing there.
//
// Lost state of the store makes revisions begin anew. Workers say which term they have followed;
// a leader whose lease is known to run (confirmed) then takes a greater one (the service does it).
//
// On a loop's thread. The key is looked at every `every`, which also tells a standby of its turn:
// a watch would tell it sooner by less than that.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/event_loop.h"
#include "base/time.h"
#include "rpc/etcd.h"

namespace penstock::coordinator {

class Leadership {
 public:
  struct Options {
    std::string key;
    std::string name;     // For people.
    std::string address;  // Where workers and gateways find this one.
    Duration ttl = std::chrono::seconds(3);
    Duration every = std::chrono::milliseconds(500);
    Duration alone_for = std::chrono::seconds(10);
  };
  struct Events {
    // `revision` is that of the key from now on. Also while leading, see above.
    std::function<void(std::int64_t revision)> on_won;
    std::function<void()> on_lost;
    std::function<bool()> followed;  // Is a worker here?
    // The store does not answer any more, or does again (OK). Each change once.
    std::function<void(const absl::Status& why)> on_store;
  };

  // `loop` and `etcd` outlive it.
  Leadership(Loop& loop, rpc::Etcd& etcd, Options options, Events events);
  ~Leadership();

  bool leading() const { return revision_ != 0; }
  // Nobody else can have begun to lead: the lease runs for certain, by this machine's clock.
  bool confirmed() const { return leading() && loop_.Now() < confirmed_until_; }
  // Of another coordinator, as the store said last; empty where none is known.
  const std::string& leader() const { return leader_; }
  std::uint64_t errors() const { return errors_; }
  // Looks at once: somebody has found out that the key may be another's.
  void Look();
  // Gives the lead to whoever wants it; no more events. `done` within a bounded time.
  void Resign(std::function<void()> done);

 private:
  void Step();
  void Again();
  void Campaign();
  void Write();
  void Hold(std::int64_t revision);
  void Follow(const rpc::EtcdKey& key);
  void Fail(const absl::Status& why);
  void Answered();
  void Lose();
  // Runs `call` unless this has ended, or resigned.
  template <typename T>
  rpc::Etcd::Done<T> Mine(std::function<void(absl::StatusOr<T>)> call);

  Loop& loop_;
  rpc::Etcd& etcd_;
  const Options options_;
  const Events events_;
  const std::string value_;
  const std::shared_ptr<Leadership*> self_ = std::make_shared<Leadership*>(this);  // Null: ended.
  Loop::TimerId timer_{};
  bool asking_ = false;  // A step is under way.
  bool resigned_ = false;
  bool away_ = false;  // The store did not answer.
  rpc::EtcdLease lease_ = 0;
  std::int64_t revision_ = 0;  // Of our key; 0: standby.
  rpc::EtcdLease won_with_ = 0;
  MonoTime confirmed_until_{};
  MonoTime followed_at_{};  // When a worker was here last, while leading.
  std::string leader_;
  std::uint64_t errors_ = 0;
};

}  // namespace penstock::coordinator
