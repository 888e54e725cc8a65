// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_network.h"

#include <algorithm>

namespace penstock::sim {

using std::chrono::microseconds;

void StreamCore::Deliver(Side to, std::function<void()> task) {
  if (broken_ || sides_[1 - to].closed) return;  // What is said now is lost.
  const MonoTime at = std::max(sides_[to].last_arrival, network_.clock_.Now() + network_.Delay());
  sides_[to].last_arrival = at;
  network_.clock_.At(at, [self = shared_from_this(), to, task = std::move(task)]() mutable {
    End_& side = self->sides_[to];
    if (side.closed || side.process == nullptr) return;  // Closed: its process may be dead.
    side.process->Post([self, to, task = std::move(task)] {
      if (!self->sides_[to].closed) task();
    });
  });
}

// Runs in the process of that side.
void StreamCore::Close(Side side, const absl::Status& status) {
  End_& end = sides_[side];
  if (std::exchange(end.closed, true)) return;
  const auto handler = std::exchange(end.on_closed, nullptr);
  if (handler != nullptr) handler(status);
}

void StreamCore::End(Side from, const absl::Status& status) {
  End_& own = sides_[from];
  if (own.closed) return;
  const Side to = from == kClient ? kServer : kClient;
  if (from == kServer) {
    Deliver(to, [this, status] { Close(kClient, status); });
  } else {
    network_.clock_.At(network_.clock_.Now() + network_.Delay(),
                       [self = shared_from_this(), status] {
                         End_& server = self->sides_[kServer];
                         if (server.closed) return;
                         if (server.process == nullptr) {
                           server.closed = true;  // Not accepted yet: it never will be.
                           return;
                         }
                         server.process->Post([self, status] { self->Close(kServer, status); });
                       });
  }
  own.closed = true;
  own.on_closed = nullptr;
}

void StreamCore::Break() {
  if (std::exchange(broken_, true)) return;
  const absl::Status status = absl::UnavailableError("the stream broke");
  for (const Side side : {kClient, kServer}) {
    End_& end = sides_[side];
    if (end.closed) continue;
    if (end.process == nullptr) {
      end.closed = true;
      continue;
    }
    // What is on its way to it arrives later than this, and is lost.
    network_.clock_.At(network_.clock_.Now() + network_.Delay(),
                       [self = shared_from_this(), side, status] {
                         const End_& there = self->sides_[side];
                         if (there.closed || there.process == nullptr) return;
                         there.process->Post([self, side, status] { self->Close(side, status); });
                       });
  }
}

void Network::Listen(const std::string& address, Process& process, Accept accept) {
  listeners_[address] = {&process, std::move(accept)};
}

void Network::Die(Process& process) {
  std::erase_if(listeners_, [&](const auto& l) { return l.second.process == &process; });
  for (const std::weak_ptr<StreamCore>& weak : streams_) {
    const std::shared_ptr<StreamCore> stream = weak.lock();
    if (stream == nullptr) continue;
    bool hit = false;
    for (StreamCore::End_& end : stream->sides_) {
      if (end.process != &process) continue;
      end = {};
      end.closed = true;
      hit = true;
    }
    if (hit) stream->Break();
  }
  Forget();
}

void Network::Forget() {
  std::erase_if(streams_, [](const std::weak_ptr<StreamCore>& weak) {
    const std::shared_ptr<StreamCore> stream = weak.lock();
    return stream == nullptr || stream->over();
  });
}

void Network::BreakOne() {
  Forget();
  if (!streams_.empty()) streams_[random_() % streams_.size()].lock()->Break();
}

void Network::Open(const std::shared_ptr<StreamCore>& stream, Process& from,
                   const std::string& address) {
  if (streams_.size() >= 256 && random_() % 64 == 0) Forget();
  streams_.push_back(stream);
  stream->sides_[StreamCore::kClient].process = &from;
  const MonoTime at = clock_.Now() + Delay();
  stream->sides_[StreamCore::kServer].last_arrival = at;
  clock_.At(at, [this, stream, address] {
    StreamCore::End_& server = stream->sides_[StreamCore::kServer];
    if (server.closed) return;
    const auto found = listeners_.find(address);
    if (found == listeners_.end()) return stream->Break();
    server.process = found->second.process;
    server.process->Post([accept = found->second.accept, stream] { accept(stream); });
  });
}

Duration Network::Delay() {
  const Duration usual = microseconds(50 + random_() % 400);
  if (random_() % 1000 >= faults_.slow * 1000) return usual;
  return usual +
         Duration(static_cast<std::int64_t>(random_() % 1024) * (faults_.slow_max.count() / 1024));
}

}  // namespace penstock::sim
