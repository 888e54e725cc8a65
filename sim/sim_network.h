// SPDX-License-Identifier: Apache-2.0
// The network between simulated processes: streams as gRPC has them. What is sent on one arrives
// late but in order; different streams overtake each other. A stream breaks with either process,
// or by a fault: then what was on its way is lost, and both sides hear so, in their own time.
//
// One thread. Streams are shared by their two sides and by what is on its way.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/virtual_loop.h"
#include "sim/sim_process.h"

namespace penstock::sim {

class Network;

// What all streams have: two sides, the client's and the server's.
class StreamCore : public std::enable_shared_from_this<StreamCore> {
 public:
  enum Side : std::size_t { kClient, kServer };

  explicit StreamCore(Network& network) : network_(network) {}
  virtual ~StreamCore() = default;

  // The client's TryCancel, the server's Finish: this side hears nothing more. A server's end comes
  // after what it sent before, a client's overtakes what is on its way.
  void End(Side from, const absl::Status& status);
  // Both sides hear UNAVAILABLE.
  void Break();
  bool over() const { return sides_[kClient].closed && sides_[kServer].closed; }
  // Once, the last that a side hears. Set before the side can hear anything.
  void OnClosed(Side side, std::function<void(const absl::Status& status)> handler) {
    sides_[side].on_closed = std::move(handler);
  }

 protected:
  // Runs `task` in the process of that side, when it arrives.
  void Deliver(Side to, std::function<void()> task);

 private:
  friend class Network;
  struct End_ {
    Process* process = nullptr;  // Of the server: null until it has accepted.
    std::function<void(const absl::Status&)> on_closed;
    MonoTime last_arrival{};
    bool closed = false;
  };
  void Close(Side side, const absl::Status& status);

  Network& network_;
  bool broken_ = false;
  std::array<End_, 2> sides_;
};

// `Up` goes from the client to the server, `Down` back.
template <typename Up, typename Down>
class Stream final : public StreamCore {
 public:
  using StreamCore::StreamCore;
  std::function<void(const Up&)> on_up;
  std::function<void(const Down&)> on_down;

  void SendUp(Up message) {
    Deliver(kServer, [this, message = std::move(message)] {
      const auto handler = on_up;  // The call may end the stream.
      if (handler != nullptr) handler(message);
    });
  }
  void SendDown(Down message) {
    Deliver(kClient, [this, message = std::move(message)] {
      const auto handler = on_down;
      if (handler != nullptr) handler(message);
    });
  }
};

struct NetworkFaults {
  double slow = 0;                                     // Share of messages that take longer ...
  Duration slow_max = std::chrono::milliseconds(200);  // ... up to this.
};

class Network {
 public:
  using Accept = std::function<void(std::shared_ptr<StreamCore> stream)>;

  Network(VirtualLoop& clock, std::mt19937& random) : clock_(clock), random_(random) {}

  void set_faults(const NetworkFaults& faults) { faults_ = faults; }
  // Until the process dies. `accept` runs in the process, before the stream's first message.
  void Listen(const std::string& address, Process& process, Accept accept);
  // To be called before `process` is destroyed.
  void Die(Process& process);
  // Broken at once, for all to hear, when nobody listens there.
  template <typename S>
  std::shared_ptr<S> Connect(Process& from, const std::string& address) {
    auto stream = std::make_shared<S>(*this);
    Open(stream, from, address);
    return stream;
  }
  // A stream that is open is broken, if there is one.
  void BreakOne();

 private:
  friend class StreamCore;
  struct Listener {
    Process* process = nullptr;
    Accept accept;
  };
  void Open(const std::shared_ptr<StreamCore>& stream, Process& from, const std::string& address);
  Duration Delay();
  void Forget();

  VirtualLoop& clock_;
  std::mt19937& random_;
  NetworkFaults faults_;
  std::map<std::string, Listener> listeners_;
  std::vector<std::weak_ptr<StreamCore>> streams_;
};

}  // namespace penstock::sim
