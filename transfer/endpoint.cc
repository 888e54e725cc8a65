// SPDX-License-Identifier: Apache-2.0
#include "transfer/endpoint.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <optional>

#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/device_name.h"
#include "base/status.h"
#include "transfer/hello.h"
#include "transfer/nccl_link.h"
#include "transfer/segment_table.h"
#include "transfer/shm_link.h"
#include "transfer/socket_address.h"
#include "transfer/tcp_link.h"
#include "transfer/ucx_transport.h"

namespace penstock::transfer {
namespace {

// How long a listener rests when the system has no descriptor for one more peer.
constexpr Duration kAcceptPause = std::chrono::milliseconds(100);

absl::Status CheckOptions(const Endpoint::Options& options, const Hello& hello) {
  RETURN_IF_ERROR(CheckHello(hello));
  if (options.kinds.empty()) return absl::InvalidArgumentError("kinds must not be empty");
  for (const Kind kind : options.kinds) {
    if (kind == Kind::kInproc) {
      return absl::InvalidArgumentError(
          absl::StrCat("kinds may have shm, nccl, ucx and tcp, got ", ToAbsl(ToString(kind))));
    }
    if (kind == Kind::kNccl) {
      RETURN_IF_ERROR(CheckRange("GPUs for kind nccl",
                                 static_cast<std::int64_t>(options.nccl.size()), 1, kGpusMax));
    }
    if (kind == Kind::kShm && options.socket_folder.empty()) {
      return absl::InvalidArgumentError("socket_folder must be given for kind shm");
    }
  }
  if (options.strangers_max == 0) {
    return absl::InvalidArgumentError("strangers_max must be at least 1, got 0");
  }
  return absl::OkStatus();
}

// The same in every process of every machine, and no separator of addresses in it.
absl::StatusOr<std::string> GpuId(const CudaDevice& device) {
  ASSIGN_OR_RETURN(const std::string host, HostId());
  absl::StatusOr<std::string> bus = device.BusId();
  if (!bus.ok()) return absl::UnavailableError(bus.status().message());
  std::ranges::replace(*bus, ':', '.');
  return absl::StrCat(host, "-", *bus);
}

// A file name that no other endpoint has, and no separator of addresses.
std::string SocketName(const Peer& self) {
  std::string name = absl::StrCat(self.name, "-", absl::Hex(self.epoch), ".sock");
  std::replace_if(
      name.begin(), name.end(), [](char c) { return c == '/' || c == ','; }, '_');
  return name;
}

}  // namespace

class Endpoint::Impl {
 public:
  Impl(EpollLoop& loop, Options options, Accept accept, Refuse refuse)
      : loop_(loop),
        options_(std::move(options)),
        accept_(std::move(accept)),
        refuse_(std::move(refuse)),
        hello_{options_.self, options_.identity},
        ucx_hello_(hello_),
        nccl_hello_(hello_) {}

  ~Impl() {
    for (Listener& listener : listeners_) {
      if (listener.resume) loop_.CancelTimer(*listener.resume);
      if (listener.watched) loop_.Unwatch(listener.fd.get());
      if (listener.route.kind == Kind::kShm) (void)::unlink(listener.route.path.c_str());
    }
    for (const auto& [id, attempt] : attempts_) {
      if (attempt->watched) loop_.Unwatch(attempt->fd.get());
      loop_.CancelTimer(attempt->timer);
    }
  }

  absl::Status Start() {
    RETURN_IF_ERROR(CheckOptions(options_, hello_));
    std::vector<Route> routes;
    for (const Kind kind : options_.kinds) {
      Route route;
      route.kind = kind;
      if (kind == Kind::kShm) {
        ASSIGN_OR_RETURN(host_id_, HostId());
        route.host = host_id_;
        route.path = absl::StrCat(options_.socket_folder, "/", SocketName(options_.self));
      } else {
        route.host = options_.tcp_host;
        route.port = kind == Kind::kTcp ? options_.tcp_port : std::uint16_t{0};
      }
      if (kind == Kind::kUcx && ucx_ == nullptr) RETURN_IF_ERROR(StartUcx());
      if (kind == Kind::kNccl) {
        if (gpus_.empty()) RETURN_IF_ERROR(StartNccl());
        route.gpus = gpus_;
      }
      Listener& listener = listeners_.emplace_back();
      ASSIGN_OR_RETURN(listener.fd, Listen(route));
      listener.route = route;
      RETURN_IF_ERROR(
          loop_.Watch(listener.fd.get(), EPOLLIN, [this, &listener](auto) { OnPeers(listener); }));
      listener.watched = true;
      if (kind != Kind::kShm && !options_.tcp_advertise.empty()) {
        route.host = options_.tcp_advertise;
        RETURN_IF_ERROR(AddressOf(route).status());
      }
      routes.push_back(route);
    }
    address_ = FormatRoutes(routes);
    return absl::OkStatus();
  }

  const std::string& address() const { return address_; }
  SegmentTable& table() { return table_; }

  void Connect(const Peer& peer, std::string_view address, Connected done,
               std::optional<Kind> without) {
    const std::uint64_t id = ++next_;
    auto& attempt = attempts_[id] = std::make_unique<Attempt>();
    attempt->peer = peer;
    attempt->done = std::move(done);
    const absl::StatusOr<std::vector<Route>> routes = ParseRoutes(address);
    if (!routes.ok()) {
      attempt->failures.push_back(std::string(ToStd(routes.status().message())));
    } else {
      for (const Kind kind : options_.kinds) {
        for (const Route& route : *routes) {
          if (route.kind == kind && kind != without) attempt->routes.push_back(route);
        }
      }
    }
    attempt->timer = loop_.At(loop_.Now(), [this, id] { TryNext(id); });
  }

 private:
  struct Listener {
    Route route;
    UniqueFd fd;
    bool watched = false;
    std::optional<Loop::TimerId> resume;
  };
  struct Attempt {
    Peer peer;
    std::deque<Route> routes;  // Still to try.
    Route route;               // Being tried.
    UniqueFd fd;               // While it connects.
    bool watched = false;
    Loop::TimerId timer{};
    std::vector<std::string> failures;
    bool late = false;
    std::unique_ptr<HelloExchange> hello;
    std::unique_ptr<UcxTransport::Exchange> exchange;  // After it, of kind ucx.
    Connected done;
  };
  // A peer that came, until it is accepted or refused.
  struct Stranger {
    std::unique_ptr<HelloExchange> hello;
    std::unique_ptr<UcxTransport::Exchange> exchange;
  };

  absl::Status StartUcx() {
    ASSIGN_OR_RETURN(ucx_, UcxTransport::Make(loop_, options_.tcp_host));
    ucx_hello_.identity.emplace_back("UCX", ucx_->release());
    return CheckHello(ucx_hello_);
  }
  absl::Status StartNccl() {
    for (const NcclComms* const gpu : options_.nccl) {
      ASSIGN_OR_RETURN(std::string id, GpuId(gpu->device()));
      gpus_.push_back(std::move(id));
    }
    nccl_hello_.identity.emplace_back("NCCL", options_.nccl.front()->release());
    return CheckHello(nccl_hello_);
  }
  const Hello& HelloOf(Kind kind) const {
    return kind == Kind::kUcx ? ucx_hello_ : kind == Kind::kNccl ? nccl_hello_ : hello_;
  }

  // ---- Peers that come.

  void OnPeers(Listener& listener) {
    if (strangers_.size() >= options_.strangers_max) return Rest(listener, std::nullopt);
    UniqueFd fd(::accept4(listener.fd.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      // Who came may have gone again. Without a free descriptor it stays in the queue, and the loop
      // would ask again at once, for ever.
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        Rest(listener, kAcceptPause);
      }
      return;
    }
    const std::uint64_t id = ++next_;
    const Kind kind = listener.route.kind;
    strangers_[id].hello = std::make_unique<HelloExchange>(
        loop_, std::move(fd), kind == Kind::kShm, HelloOf(kind),
        loop_.Now() + options_.connect_timeout,
        [this, id, kind](absl::StatusOr<Hello> theirs, UniqueFd socket) {
          OnStranger(id, kind, std::move(theirs), std::move(socket));
        });
  }

  void Rest(Listener& listener, std::optional<Duration> pause) {
    loop_.ChangeWatch(listener.fd.get(), 0);
    if (!pause) return;
    listener.resume = loop_.At(loop_.Now() + *pause, [this, &listener] {
      listener.resume.reset();
      Resume(listener);
    });
  }
  void Resume(Listener& listener) {
    if (!listener.resume) loop_.ChangeWatch(listener.fd.get(), EPOLLIN);
  }

  void OnStranger(std::uint64_t id, Kind kind, absl::StatusOr<Hello> theirs, UniqueFd socket) {
    const auto hello = std::move(strangers_.at(id).hello);
    absl::Status status = theirs.status();
    if (status.ok()) status = CompareIdentity(HelloOf(kind), *theirs);
    if (!status.ok()) return EndStranger(id, {}, status);
    if (kind != Kind::kUcx) {
      return EndStranger(id, theirs->self, MakeLink(kind, std::move(socket), false));
    }
    strangers_.at(id).exchange =
        BeginUcx(std::move(socket), [this, id, peer = theirs->self](auto link) {
          const auto exchange = std::move(strangers_.at(id).exchange);
          EndStranger(id, peer, std::move(link));
        });
  }

  void EndStranger(std::uint64_t id, const Peer& peer, absl::StatusOr<std::unique_ptr<Link>> link) {
    strangers_.erase(id);
    for (Listener& waiting : listeners_) Resume(waiting);
    if (link.ok()) return accept_(MakeChannel(peer, *std::move(link)));
    if (refuse_) refuse_(link.status());
  }

  std::unique_ptr<Channel> MakeChannel(const Peer& peer, std::unique_ptr<Link> link) {
    return std::make_unique<Channel>(loop_, peer, std::move(link));
  }

  // `connects`: it was this side that connected.
  absl::StatusOr<std::unique_ptr<Link>> MakeLink(Kind kind, UniqueFd socket, bool connects) {
    if (kind == Kind::kShm) return MakeShmLink(loop_, std::move(socket), table_);
    std::string address = PeerAddress(socket.get());
    if (kind == Kind::kNccl) {
      return MakeNcclLink(loop_, std::move(socket), table_, options_.nccl,
                          {.peer_address = std::move(address),
                           .silence_max = options_.silence_max,
                           .first = connects});
    }
    return MakeTcpLink(loop_, std::move(socket), table_,
                       {.peer_address = std::move(address), .silence_max = options_.silence_max});
  }

  std::unique_ptr<UcxTransport::Exchange> BeginUcx(UniqueFd socket, UcxTransport::Done done) {
    std::string address = PeerAddress(socket.get());
    return ucx_->Begin(std::move(socket), table_,
                       {.peer_address = std::move(address), .silence_max = options_.silence_max},
                       loop_.Now() + options_.connect_timeout, std::move(done));
  }

  // ---- Peers that this one goes to.

  void TryNext(std::uint64_t id) {
    Attempt& attempt = *attempts_.at(id);
    loop_.CancelTimer(attempt.timer);
    while (!attempt.routes.empty()) {
      attempt.route = std::move(attempt.routes.front());
      attempt.routes.pop_front();
      const absl::Status status = TryRoute(id, attempt);
      if (status.ok()) return;
      attempt.failures.push_back(std::string(ToStd(status.message())));
    }
    std::string why = absl::StrJoin(attempt.failures, "; ");
    if (why.empty()) why = "its address has none of the kinds that this side has";
    why = absl::StrCat("cannot connect to ", attempt.peer.name, ": ", why);
    End(id, attempt.late ? absl::DeadlineExceededError(why) : absl::UnavailableError(why));
  }

  absl::Status TryRoute(std::uint64_t id, Attempt& attempt) {
    if (attempt.route.kind == Kind::kShm && attempt.route.host != host_id_) {
      return absl::UnavailableError("shm: on another host");
    }
    // NCCL takes no two ranks on one, and what one pair of GPUs cannot have, no pair has.
    for (const std::string& gpu : attempt.route.gpus) {
      if (std::ranges::find(gpus_, gpu) == gpus_.end()) continue;
      return absl::UnavailableError("nccl: both are on one GPU");
    }
    ASSIGN_OR_RETURN(attempt.fd, BeginConnect(attempt.route));
    RETURN_IF_ERROR(loop_.Watch(attempt.fd.get(), EPOLLOUT, [this, id](auto) { OnConnected(id); }));
    attempt.watched = true;
    attempt.timer = loop_.At(loop_.Now() + options_.connect_timeout, [this, id] {
      Attempt& late = *attempts_.at(id);
      late.late = true;
      NextAfter(id, absl::DeadlineExceededError(
                        absl::StrCat(FormatRoutes({late.route}), ": no answer in time")));
    });
    return absl::OkStatus();
  }

  void NextAfter(std::uint64_t id, const absl::Status& failure) {
    Attempt& attempt = *attempts_.at(id);
    attempt.failures.push_back(std::string(ToStd(failure.message())));
    if (attempt.watched) loop_.Unwatch(attempt.fd.get());
    attempt.watched = false;
    attempt.fd.Reset();
    TryNext(id);
  }

  void OnConnected(std::uint64_t id) {
    Attempt& attempt = *attempts_.at(id);
    const absl::Status status = ConnectResult(attempt.fd.get(), attempt.route);
    if (!status.ok()) return NextAfter(id, status);
    loop_.CancelTimer(attempt.timer);
    loop_.Unwatch(attempt.fd.get());
    attempt.watched = false;
    attempt.hello = std::make_unique<HelloExchange>(
        loop_, std::move(attempt.fd), attempt.route.kind == Kind::kShm, HelloOf(attempt.route.kind),
        loop_.Now() + options_.connect_timeout,
        [this, id](absl::StatusOr<Hello> theirs, UniqueFd socket) {
          OnHello(id, std::move(theirs), std::move(socket));
        });
  }

  void OnHello(std::uint64_t id, absl::StatusOr<Hello> theirs, UniqueFd socket) {
    Attempt& attempt = *attempts_.at(id);
    const auto hello = std::move(attempt.hello);
    absl::Status status = theirs.status();
    if (status.ok() && theirs->self != attempt.peer) {
      status = absl::AbortedError(absl::StrCat("at the address of ", attempt.peer.name, ", epoch ",
                                               attempt.peer.epoch, ", there is ", theirs->self.name,
                                               ", epoch ", theirs->self.epoch));
    }
    const Kind kind = attempt.route.kind;
    if (status.ok()) status = CompareIdentity(HelloOf(kind), *theirs);
    // Another kind would find the same peer.
    if (absl::IsFailedPrecondition(status) || absl::IsAborted(status)) return End(id, status);
    if (!status.ok()) return NextAfterTalk(id, status);
    if (kind != Kind::kUcx) {
      absl::StatusOr<std::unique_ptr<Link>> link = MakeLink(kind, std::move(socket), true);
      if (!link.ok()) return NextAfterTalk(id, link.status());
      return End(id, MakeChannel(attempt.peer, *std::move(link)));
    }
    attempt.exchange = BeginUcx(std::move(socket), [this, id](auto link) {
      Attempt& talking = *attempts_.at(id);
      const auto exchange = std::move(talking.exchange);
      if (!link.ok()) return NextAfterTalk(id, link.status());
      End(id, MakeChannel(talking.peer, *std::move(link)));
    });
  }

  void NextAfterTalk(std::uint64_t id, const absl::Status& status) {
    Attempt& attempt = *attempts_.at(id);
    attempt.late = attempt.late || absl::IsDeadlineExceeded(status);
    NextAfter(id, absl::UnavailableError(
                      absl::StrCat(FormatRoutes({attempt.route}), ": ", status.message())));
  }

  // May destroy this.
  void End(std::uint64_t id, absl::StatusOr<std::unique_ptr<Channel>> channel) {
    const auto node = attempts_.extract(id);
    node.mapped()->done(std::move(channel));
  }

  EpollLoop& loop_;
  const Options options_;
  const Accept accept_;
  const Refuse refuse_;
  const Hello hello_;
  Hello ucx_hello_;   // And the release of UCX.
  Hello nccl_hello_;  // And that of NCCL.
  SegmentTable table_;
  std::unique_ptr<UcxTransport> ucx_;  // Null without kind ucx.
  std::string host_id_;
  std::vector<std::string> gpus_;  // Of kind nccl.
  std::string address_;
  std::uint64_t next_ = 0;
  std::deque<Listener> listeners_;  // Their addresses stay.
  std::map<std::uint64_t, Stranger> strangers_;
  std::map<std::uint64_t, std::unique_ptr<Attempt>> attempts_;
};

absl::StatusOr<std::unique_ptr<Endpoint>> Endpoint::Make(EpollLoop& loop, Options options,
                                                         Accept accept, Refuse refuse) {
  auto impl =
      std::make_unique<Impl>(loop, std::move(options), std::move(accept), std::move(refuse));
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Endpoint>(new Endpoint(std::move(impl)));
}

Endpoint::Endpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Endpoint::~Endpoint() = default;
const std::string& Endpoint::address() const { return impl_->address(); }
SegmentId Endpoint::Register(DeviceMemory& memory, std::size_t gpu) {
  return impl_->table().Register(memory, gpu);
}
void Endpoint::Withdraw(SegmentId segment) { impl_->table().Withdraw(segment); }
void Endpoint::Connect(const Peer& peer, std::string_view address, Connected done,
                       std::optional<Kind> without) {
  impl_->Connect(peer, address, std::move(done), without);
}

}  // namespace penstock::transfer
