// SPDX-License-Identifier: Apache-2.0
#include "transfer/ucx_transport.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/status.h"
#include "transfer/ucx_config.h"
#include "transfer/ucx_link.h"
#include "transfer/ucx_worker.h"
#include "transfer/wire.h"

namespace penstock::transfer {
namespace {

constexpr std::size_t kAddressBytesMax = std::size_t{64} << 10;
constexpr std::size_t kHeadBytes = 12;  // The link's number, and the bytes of the address behind.
constexpr std::byte kReady{1};

// Each side sends its address and the number of its link, connects to the other's, and says that it
// is ready: from then on frames find their link.
class UcxExchange final : public UcxTransport::Exchange {
 public:
  UcxExchange(EpollLoop& loop, UcxWorker& worker, std::unique_ptr<UcxLink> link, UniqueFd socket,
              MonoTime deadline, UcxTransport::Done done)
      : loop_(loop), link_(std::move(link)), socket_(std::move(socket)), done_(std::move(done)) {
    WireWriter writer(out_);
    writer.Number(link_->number());
    writer.Number(static_cast<std::uint32_t>(worker.address().size()));
    writer.Bytes(worker.address());
    const absl::Status status =
        loop_.Watch(socket_.get(), EPOLLIN | EPOLLOUT, [this](std::uint32_t) { OnReady(); });
    watched_ = status.ok();
    // One that cannot be watched ends at once, but not from inside this call.
    timer_ = loop_.At(watched_ ? deadline : loop_.Now(), [this, status] {
      End(status.ok() ? absl::DeadlineExceededError("the peer did not give its UCX address")
                      : status);
    });
  }
  ~UcxExchange() override { Detach(); }

 private:
  void OnReady() {
    absl::Status status = Send();
    if (status.ok()) status = Receive();
    if (!status.ok() || (ready_ && sent_ == out_.size())) return End(status);
    loop_.ChangeWatch(socket_.get(), sent_ < out_.size() ? EPOLLIN | EPOLLOUT : EPOLLIN);
  }

  absl::Status Send() {
    while (sent_ < out_.size()) {
      const ssize_t sent = ::send(socket_.get(), out_.data() + sent_, out_.size() - sent_,
                                  MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return absl::OkStatus();
      if (sent < 0) {
        return absl::UnavailableError(absl::StrCat("sending a UCX address: ", strerror(errno)));
      }
      sent_ += static_cast<std::size_t>(sent);
    }
    return absl::OkStatus();
  }

  // Not one byte more than the peer's address and its kReady.
  absl::Status Receive() {
    while (!ready_) {
      if (got_ == in_.size()) RETURN_IF_ERROR(OnPart());
      const ssize_t got = ::recv(socket_.get(), in_.data() + got_, in_.size() - got_, MSG_DONTWAIT);
      if (got < 0 && (errno == EAGAIN || errno == EINTR)) return absl::OkStatus();
      if (got <= 0) return absl::UnavailableError("the peer hung up, giving its UCX address");
      got_ += static_cast<std::size_t>(got);
      if (connected_ && in_.back() != kReady) return absl::InvalidArgumentError("it is not ready");
      ready_ = connected_;
    }
    return absl::OkStatus();
  }

  // All that was expected is there: the head, then the address, and then kReady is expected.
  absl::Status OnPart() {
    WireReader reader(in_);
    const auto number = reader.Number<std::uint64_t>();
    const auto bytes = reader.Number<std::uint32_t>();
    if (bytes == 0 || bytes > kAddressBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("a UCX address has from 1 to ", kAddressBytesMax, " bytes, got ", bytes));
    }
    if (in_.size() == kHeadBytes) {
      in_.resize(kHeadBytes + bytes);
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(link_->Connect(reader.Bytes(bytes), number));
    connected_ = true;
    in_.resize(in_.size() + 1);
    out_.push_back(kReady);
    return Send();
  }

  void Detach() {
    loop_.CancelTimer(timer_);
    if (watched_) loop_.Unwatch(socket_.get());
    watched_ = false;
  }

  // May destroy this.
  void End(const absl::Status& status) {
    Detach();
    const UcxTransport::Done done = done_;
    if (!status.ok()) return done(status);
    link_->Keep(std::move(socket_));
    done(std::move(link_));
  }

  EpollLoop& loop_;
  std::unique_ptr<UcxLink> link_;
  UniqueFd socket_;
  const UcxTransport::Done done_;
  std::vector<std::byte> out_;
  std::size_t sent_ = 0;
  std::vector<std::byte> in_ = std::vector<std::byte>(kHeadBytes);
  std::size_t got_ = 0;
  bool connected_ = false;
  bool ready_ = false;
  bool watched_ = false;
  Loop::TimerId timer_{};
};

class RealUcxTransport final : public UcxTransport {
 public:
  RealUcxTransport(EpollLoop& loop, std::unique_ptr<UcxWorker> worker)
      : loop_(loop), worker_(std::move(worker)) {}

  std::string release() const override {
    return absl::StrCat(ucp_get_version_string(), " (API ", UCP_API_MAJOR, ".", UCP_API_MINOR, ")");
  }

  std::unique_ptr<Exchange> Begin(UniqueFd socket, SegmentTable& own, LinkOptions options,
                                  MonoTime deadline, Done done) override {
    options.peer_address += " (" + worker_->devices() + ")";
    auto link = std::make_unique<UcxLink>(loop_, *worker_, own, std::move(options));
    return std::make_unique<UcxExchange>(loop_, *worker_, std::move(link), std::move(socket),
                                         deadline, std::move(done));
  }

 private:
  EpollLoop& loop_;
  const std::unique_ptr<UcxWorker> worker_;
};

}  // namespace

bool UcxTransport::Built() { return true; }

absl::StatusOr<std::unique_ptr<UcxTransport>> UcxTransport::Make(EpollLoop& loop,
                                                                 const std::string& host) {
  ASSIGN_OR_RETURN(const UcxDevices devices, ChooseUcxDevices(host));
  ASSIGN_OR_RETURN(std::unique_ptr<UcxWorker> worker, UcxWorker::Make(loop, devices));
  return std::make_unique<RealUcxTransport>(loop, std::move(worker));
}

}  // namespace penstock::transfer
