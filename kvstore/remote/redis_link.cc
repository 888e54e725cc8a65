// SPDX-License-Identifier: Apache-2.0
#include "kvstore/remote/redis_link.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "kvstore/remote/redis_address.h"

namespace penstock::kvstore {
namespace {

constexpr Duration kPauseMin = std::chrono::milliseconds(10);
constexpr std::size_t kReadBytes = 64 << 10;  // Stays in the processor's cache.
constexpr int kCallsPerTurn = 16;             // Of recv or sendmsg, so that others have the loop.
constexpr std::size_t kPartsPerCall = 32;
constexpr std::int64_t kValueBytesMax = std::int64_t{512} << 20;
constexpr std::size_t kErrorTextMax = 200;
constexpr std::string_view kLineEnd = "\r\n";

absl::Status Failed(const char* what, int error) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(error)));
}

}  // namespace

std::string RedisCommandHead(std::span<const std::string_view> arguments,
                             const std::size_t* bytes) {
  std::string head = absl::StrCat("*", arguments.size() + (bytes != nullptr ? 1 : 0), "\r\n");
  for (const std::string_view argument : arguments) {
    absl::StrAppend(&head, "$", argument.size(), "\r\n", ToAbsl(argument), "\r\n");
  }
  if (bytes != nullptr) absl::StrAppend(&head, "$", *bytes, "\r\n");
  return head;
}

namespace {

class EpollRedisLink final : public RedisLink {
 public:
  EpollRedisLink(EpollLoop& loop, const RedisLinkOptions& options,
                 std::vector<SocketAddress> addresses)
      : loop_(loop), options_(options), addresses_(std::move(addresses)), buffer_(kReadBytes) {}
  ~EpollRedisLink() override {
    Close();
    loop_.CancelTimer(pause_timer_);
  }

  void Start(Events events) override {
    events_ = std::move(events);
    StartAfter(Duration::zero());
  }
  bool is_up() const override { return state_ == State::kUp; }
  Stats stats() const override { return stats_; }
  void Send(Command command) override {
    CHECK(is_up());
    Append(std::move(command));
  }

 private:
  enum class State { kDown, kConnecting, kGreeting, kUp };
  struct Part {  // Of what is to be sent. It stays where it is.
    std::string text = {};
    std::span<const std::byte> bytes;  // Of `text`, or of the owner's: those not sent yet.
    std::shared_ptr<const void> owner = {};
  };

  // `task` while this lives.
  template <typename F>
  auto Alive(F task) {
    return [task = std::move(task), life = std::weak_ptr(life_)] {
      if (!life.expired()) task();
    };
  }

  void StartAfter(Duration pause) {
    pause_timer_ = loop_.At(loop_.Now() + pause, [this] { Connect(); });
  }

  void Connect() {
    const SocketAddress& to = addresses_[attempts_++ % addresses_.size()];
    fd_.Reset(::socket(to.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd_) return Fail(Failed("socket", errno));
    if (to.storage.ss_family != AF_UNIX) {
      const int on = 1;
      ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    if (::connect(fd_.get(), to.get(), to.bytes) != 0 && errno != EINPROGRESS) {
      return Fail(Failed("connect", errno));
    }
    state_ = State::kConnecting;
    watched_ = EPOLLIN | EPOLLOUT;
    if (const absl::Status status =
            loop_.Watch(fd_.get(), watched_, [this](std::uint32_t events) { Ready(events); });
        !status.ok()) {
      watched_ = 0;
      return Fail(status);
    }
    timer_ = loop_.At(loop_.Now() + options_.greet_within, [this] {
      Fail(absl::UnavailableError(absl::StrCat("no answer to the greeting within ",
                                               ToMillis(options_.greet_within), " ms")));
    });
  }

  void Ready(std::uint32_t events) {
    if (state_ == State::kConnecting) {
      int error = 0;
      socklen_t bytes = sizeof(error);
      ::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &bytes);
      if (error != 0) return Fail(Failed("connect", error));
      if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0) Greet();
      return;
    }
    if ((events & EPOLLOUT) != 0) {
      if (const absl::Status status = Write(); !status.ok()) return Fail(status);
    }
    if ((events & ~std::uint32_t{EPOLLOUT}) != 0) {
      if (const absl::Status status = Read(); !status.ok()) return Fail(status);
    }
    WatchAsNeeded();
  }

  void Greet() {
    state_ = State::kGreeting;
    replies_.emplace(options_.value_bytes_max,
                     [this](const RedisReply& reply) { return OnReply(reply); });
    std::vector<std::string_view> greeting = {"PING"};
    if (!options_.password.empty()) {
      greeting = {"AUTH", options_.password};
      if (!options_.user.empty()) greeting.insert(greeting.begin() + 1, options_.user);
    }
    Append({.head = RedisCommandHead(greeting)});
  }

  absl::Status OnReply(const RedisReply& reply) {
    if (owed_ == 0) return absl::UnavailableError("the server speaks unasked");
    --owed_;
    if (state_ == State::kUp) {
      RedisReply told = reply;
      const std::string text = WithoutPassword(reply.text);
      if (reply.kind == RedisReply::Kind::kError) told.text = text;
      RETURN_IF_ERROR(events_.reply(told));
      pause_ = kPauseMin;  // It makes sense.
      return absl::OkStatus();
    }
    if (reply.kind != RedisReply::Kind::kStatus) {
      // The code alone: servers repeat what they do not understand.
      const std::string_view code = reply.kind == RedisReply::Kind::kError
                                        ? reply.text.substr(0, reply.text.find(' '))
                                        : "no status";
      return absl::UnavailableError(
          absl::StrCat("the server refuses the greeting: ", WithoutPassword(code)));
    }
    state_ = State::kUp;
    loop_.CancelTimer(timer_);
    timer_ = {};
    ++stats_.connections;
    LOG_INFO("remote tier is connected", {{"address", options_.address}});
    said_down_ = false;
    // Not from here: it sends, and we are reading.
    loop_.Post(Alive([this] {
      if (is_up()) events_.up();
    }));
    return absl::OkStatus();
  }

  // Short, printable, and without what nobody may read.
  std::string WithoutPassword(std::string_view text) const {
    if (!options_.password.empty() && text.find(options_.password) != std::string_view::npos) {
      return "(it repeats the password)";
    }
    std::string out(text.substr(0, kErrorTextMax));
    for (char& c : out) {
      if (c < ' ' || c > '~') c = '?';
    }
    return out;
  }

  void Append(Command command) {
    const bool idle = owed_ == 0;
    owed_ += command.replies;
    Part& head = parts_.emplace_back();
    head.text = std::move(command.head);
    head.bytes = std::as_bytes(std::span(head.text));
    if (!command.bytes.empty()) {
      parts_.push_back({.bytes = command.bytes, .owner = std::move(command.owner)});
      parts_.push_back({.bytes = std::as_bytes(std::span(kLineEnd))});
    }
    if (idle) WatchSilence();
    WatchAsNeeded();
  }

  absl::Status Write() {
    for (int call = 0; call < kCallsPerTurn && !parts_.empty(); ++call) {
      std::array<iovec, kPartsPerCall> pieces;
      std::size_t count = 0;
      for (const Part& part : parts_) {
        if (count == pieces.size()) break;
        pieces[count++] = {const_cast<std::byte*>(part.bytes.data()), part.bytes.size()};
      }
      const msghdr message = {.msg_name = nullptr,
                              .msg_namelen = 0,
                              .msg_iov = pieces.data(),
                              .msg_iovlen = count,
                              .msg_control = nullptr,
                              .msg_controllen = 0,
                              .msg_flags = 0};
      const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno == EAGAIN || errno == EINTR) return absl::OkStatus();
        return Failed("send", errno);
      }
      Moved(stats_.bytes_written, sent);
      for (auto left = static_cast<std::size_t>(sent); left > 0;) {
        Part& part = parts_.front();
        const std::size_t taken = std::min(left, part.bytes.size());
        left -= taken;
        part.bytes = part.bytes.subspan(taken);
        if (part.bytes.empty()) parts_.pop_front();
      }
    }
    return absl::OkStatus();
  }

  absl::Status Read() {
    for (int call = 0; call < kCallsPerTurn; ++call) {
      const ssize_t got = ::recv(fd_.get(), buffer_.data(), buffer_.size(), 0);
      if (got < 0) {
        if (errno == EAGAIN || errno == EINTR) return absl::OkStatus();
        return Failed("receive", errno);
      }
      if (got == 0) return absl::UnavailableError("the server closed the connection");
      Moved(stats_.bytes_read, got);
      if (const absl::Status status =
              replies_->Feed(std::span(buffer_).first(static_cast<std::size_t>(got)));
          !status.ok()) {
        return absl::UnavailableError(status.message());
      }
      if (static_cast<std::size_t>(got) < buffer_.size()) break;
    }
    return absl::OkStatus();
  }
  void Moved(std::uint64_t& count, ssize_t bytes) {
    count += static_cast<std::uint64_t>(bytes);
    moved_at_ = loop_.Now();
  }

  // While replies are owed. The timer is set anew when it fires, not with every byte.
  void WatchSilence() {
    if (state_ != State::kUp) return;  // The greeting has its own time.
    moved_at_ = loop_.Now();
    if (timer_ == Loop::TimerId{}) SetSilenceTimer(moved_at_);
  }
  void SetSilenceTimer(MonoTime since) {
    timer_ = loop_.At(since + options_.silence_max, [this] {
      timer_ = {};
      if (owed_ == 0) return;
      if (loop_.Now() < moved_at_ + options_.silence_max) return SetSilenceTimer(moved_at_);
      Fail(absl::UnavailableError(
          absl::StrCat("the server was silent for ", ToMillis(options_.silence_max), " ms")));
    });
  }

  void WatchAsNeeded() {
    if (!fd_ || watched_ == 0 || state_ == State::kConnecting) return;
    const std::uint32_t wanted = EPOLLIN | (parts_.empty() ? 0u : std::uint32_t{EPOLLOUT});
    if (wanted == watched_) return;
    loop_.ChangeWatch(fd_.get(), wanted);
    watched_ = wanted;
  }

  // Ends the connection or the attempt, and sets the next one.
  void Fail(const absl::Status& why) {
    const bool was_up = is_up();
    Close();
    StartAfter(pause_);
    pause_ = std::min(2 * pause_, std::max(options_.pause_max, kPauseMin));
    if (!std::exchange(said_down_, true)) {
      LOG_WARNING("remote tier is not connected",
                  {{"address", options_.address}, {"why", ToStd(why.message())}});
    }
    // Later: we may be inside a call.
    loop_.Post(Alive([this, why, was_up] { events_.down(why, was_up); }));
  }
  void Close() {
    if (watched_ != 0) loop_.Unwatch(fd_.get());
    watched_ = 0;
    fd_.Reset();
    loop_.CancelTimer(timer_);
    timer_ = {};
    state_ = State::kDown;
    parts_.clear();
    owed_ = 0;
  }

  EpollLoop& loop_;
  const RedisLinkOptions options_;
  Events events_;
  const std::vector<SocketAddress> addresses_;
  State state_ = State::kDown;
  UniqueFd fd_;
  std::uint32_t watched_ = 0;  // Events; 0: it is not.
  std::uint64_t attempts_ = 0;
  Duration pause_ = kPauseMin;
  Loop::TimerId pause_timer_{};
  Loop::TimerId timer_{};  // Of the greeting or the silence.
  MonoTime moved_at_{};
  std::deque<Part> parts_;
  std::uint64_t owed_ = 0;  // Replies.
  std::optional<RedisReplies> replies_;
  std::vector<std::byte> buffer_;
  bool said_down_ = false;
  Stats stats_;
  std::shared_ptr<int> life_ = std::make_shared<int>();
};

}  // namespace

absl::StatusOr<std::unique_ptr<RedisLink>> OpenRedisLink(EpollLoop& loop,
                                                         const RedisLinkOptions& options) {
  RETURN_IF_ERROR(CheckRange("value_bytes_max", static_cast<std::int64_t>(options.value_bytes_max),
                             1, kValueBytesMax));
  ASSIGN_OR_RETURN(std::vector<SocketAddress> addresses, ResolveRedis(options.address));
  return std::make_unique<EpollRedisLink>(loop, options, std::move(addresses));
}

}  // namespace penstock::kvstore
