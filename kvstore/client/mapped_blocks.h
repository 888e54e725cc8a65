// SPDX-License-Identifier: Apache-2.0
// Copies at store nodes of this host that this process reads where they are, in the node's memory.
//
// Life of a copy:   Take -> verified by who takes it -> Make -> read -> destroyed: the node hears it
//
// As long as it lives its lease is renewed, at a third of the time that the node says it lasts. Where
// that fails, its lease has ended or the link to the node is lost, it counts as changed at once; where
// this process was stopped for longer than leases last, its generation tells. How much all processes
// hold of a node's memory is the node's to bound: it says of each copy whether it may be kept.
//
// On one loop; the copies themselves on any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/event_loop.h"
#include "base/mapped_block.h"
#include "base/time.h"
#include "kvstore/node/store_links.h"
#include "kvstore/node/store_messages.h"
#include "transfer/life.h"

namespace penstock::kvstore {

class MappedBlocks {
 public:
  struct Options {
    double renew_at = 1.0 / 3;  // Of a lease's time.
  };
  struct Stats {
    std::size_t copies = 0;  // Live ones, as the next.
    std::size_t bytes = 0;
    std::uint64_t lost = 0;  // Ever, of which the lease or the link ended first.
  };

  MappedBlocks(Loop& loop, Options options);
  // What still lives counts as changed.
  ~MappedBlocks();

  // Whether a copy that was found may be read where it is, instead of being copied. Then either Make
  // follows, or GiveBack.
  bool Take(StoreLink& link, const FoundMessage& found);
  void GiveBack(StoreLink& link);
  // Of a payload that was verified where it is. Null: it cannot be read there, or has changed; what
  // was taken is given back. The node is told to keep it by who found it.
  std::shared_ptr<const MappedBlock> Make(StoreLink& link, const FoundMessage& found,
                                          std::size_t bytes);

  // What comes on `link` under a find's number, to whomever; of others than Lost and ends, nothing.
  void OnAnswer(StoreLink& link, std::uint64_t find, const absl::StatusOr<StoreMessage>& answer);
  // Who asked hears no more of the find: its copies are listened for from here.
  void TakeOver(StoreLink& link, std::uint64_t find);

  Stats stats() const { return stats_; }

 private:
  class Copy;
  struct Returns;
  struct Find {
    std::map<std::uint32_t, std::weak_ptr<Copy>> copies;  // By index.
    bool listening = false;
  };
  struct Held {
    std::uint64_t number = 0;  // Of the link; new for each.
    std::size_t copies = 0;    // Those taken, too.
    Duration lease = {};       // As the node said last.
    std::map<std::uint64_t, Find> finds;
  };

  void EndLink(StoreLink& link);
  void Lose(Copy& copy);
  void TakeReturns();
  void RenewLater();
  void Renew();

  Loop& loop_;
  const Options options_;
  const std::shared_ptr<Returns> returns_;
  std::map<StoreLink*, Held> links_;
  std::uint64_t next_link_ = 1;
  std::optional<Loop::TimerId> timer_;
  MonoTime renew_ = {};  // When it is due.
  Stats stats_;
  transfer::Life life_;
};

}  // namespace penstock::kvstore
