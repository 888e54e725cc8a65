// SPDX-License-Identifier: Apache-2.0
// What benchmarks of tiers share: work that is under way several times at once, and medians.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <utility>
#include <vector>

#include "base/epoll_loop.h"
#include "base/time.h"

namespace penstock::bench {

// Begins piece `number`, on the loop; `done` is called there once it has ended.
using StartPiece = std::function<void(std::uint64_t number, std::function<void()> done)>;

// Of `pieces`, from the first's begin to the last's end, `in_flight` at a time.
inline double SecondsInFlight(EpollLoop& loop, std::uint64_t pieces, int in_flight,
                              const StartPiece& start) {
  const auto over = std::make_shared<std::promise<void>>();
  const MonoTime begin = SteadyClock().Now();
  std::uint64_t next = 0, ended = 0;
  std::function<void()> more;
  loop.Run([&] {
    more = [&] {
      start(next++, [&] {
        if (++ended == pieces) return over->set_value();
        if (next < pieces) more();
      });
    };
    for (int i = 0; i < in_flight; ++i) more();
  });
  over->get_future().wait();
  return ToSeconds(SteadyClock().Now() - begin);
}

inline double Median(std::vector<double> all) {
  std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2),
                   all.end());
  return all[all.size() / 2];
}

}  // namespace penstock::bench
