// SPDX-License-Identifier: Apache-2.0
#include "transfer/hello.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/status.h"
#include "transfer/wire.h"

namespace penstock::transfer {
namespace {

constexpr std::uint32_t kMagic = 0x4b4e4550;  // "PENK" on the wire.
constexpr std::uint32_t kVersion = 4;

}  // namespace

absl::Status CheckHello(const Hello& hello) {
  RETURN_IF_ERROR(CheckRange("name bytes", static_cast<std::int64_t>(hello.self.name.size()), 1,
                             kNameBytesMax));
  RETURN_IF_ERROR(CheckRange("identity fields", static_cast<std::int64_t>(hello.identity.size()), 0,
                             kIdentityFieldsMax));
  for (const auto& [field, value] : hello.identity) {
    RETURN_IF_ERROR(CheckRange(ToStd(absl::StrCat("bytes of identity field ", field)),
                               static_cast<std::int64_t>(field.size() + value.size()), 1,
                               kIdentityFieldBytesMax));
  }
  return absl::OkStatus();
}

std::vector<std::byte> EncodeHello(const Hello& hello) {
  std::vector<std::byte> body, all;
  WireWriter writer(body), framed(all);
  writer.Text(hello.self.name);
  writer.Number(hello.self.epoch);
  writer.Number(static_cast<std::uint16_t>(hello.identity.size()));
  for (const auto& [field, value] : hello.identity) {
    writer.Text(field);
    writer.Text(value);
  }
  framed.Number(kMagic);
  framed.Number(kVersion);
  framed.Number(static_cast<std::uint32_t>(body.size()));
  framed.Bytes(body);
  return all;
}

absl::StatusOr<std::size_t> DecodePreamble(std::span<const std::byte, kPreambleBytes> bytes) {
  WireReader reader(bytes);
  const auto magic = reader.Number<std::uint32_t>();
  const auto version = reader.Number<std::uint32_t>();
  const auto size = reader.Number<std::uint32_t>();
  if (magic != kMagic) {
    return absl::InvalidArgumentError("what answers there does not speak this protocol");
  }
  if (version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("transfer protocol is ", kVersion, " here, ", version, " at the peer"));
  }
  if (size == 0 || size > kHelloBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a hello has from 1 to ", kHelloBytesMax, " bytes, got ", size));
  }
  return size;
}

absl::StatusOr<Hello> DecodeHello(std::span<const std::byte> bytes) {
  WireReader reader(bytes);
  Hello hello;
  hello.self.name = reader.Text();
  hello.self.epoch = reader.Number<std::uint64_t>();
  const auto fields = reader.Number<std::uint16_t>();
  for (std::uint16_t i = 0; i < fields && reader.ok(); ++i) {
    std::string field = reader.Text();
    hello.identity.emplace_back(std::move(field), reader.Text());
  }
  if (!reader.ok() || reader.left() > 0) return absl::InvalidArgumentError("a malformed hello");
  RETURN_IF_ERROR(CheckHello(hello));
  return hello;
}

absl::Status CompareIdentity(const Hello& ours, const Hello& theirs) {
  const auto at = [](const Hello& hello, std::size_t i) {
    return i < hello.identity.size() ? hello.identity[i]
                                     : std::pair<std::string, std::string>("nothing", "nothing");
  };
  for (std::size_t i = 0; i < std::max(ours.identity.size(), theirs.identity.size()); ++i) {
    const auto [field, value] = at(ours, i);
    const auto [their_field, their_value] = at(theirs, i);
    if (field != their_field) {
      return absl::FailedPreconditionError(absl::StrCat("field ", i, " of the identity is ", field,
                                                        " here, ", their_field, " at ",
                                                        theirs.self.name));
    }
    if (value != their_value) {
      return absl::FailedPreconditionError(
          absl::StrCat(field, " is ", value, " here, ", their_value, " at ", theirs.self.name));
    }
  }
  return absl::OkStatus();
}

HelloExchange::HelloExchange(EpollLoop& loop, UniqueFd socket, bool packets, const Hello& ours,
                             MonoTime deadline, Done done)
    : loop_(loop),
      socket_(std::move(socket)),
      packets_(packets),
      done_(std::move(done)),
      out_(EncodeHello(ours)),
      in_(packets ? kPreambleBytes + kHelloBytesMax : kPreambleBytes) {
  const absl::Status status =
      loop_.Watch(socket_.get(), EPOLLIN | EPOLLOUT, [this](std::uint32_t) { OnReady(); });
  watched_ = status.ok();
  // One that cannot be watched ends at once, but not from inside this call.
  timer_ = loop_.At(watched_ ? deadline : loop_.Now(), [this, status] {
    End(status.ok() ? absl::DeadlineExceededError("the peer did not say who it is") : status);
  });
}

HelloExchange::~HelloExchange() {
  loop_.CancelTimer(timer_);
  if (watched_) loop_.Unwatch(socket_.get());
}

void HelloExchange::OnReady() {
  absl::Status status = Send();
  if (status.ok() && !whole_) status = Receive();
  if (!status.ok()) return End(status);
  if (sent_ < out_.size()) return;
  loop_.ChangeWatch(socket_.get(), EPOLLIN);
  if (whole_) End(DecodeHello(std::span(in_).subspan(kPreambleBytes)));
}

absl::Status HelloExchange::Send() {
  while (sent_ < out_.size()) {
    const ssize_t sent = ::send(socket_.get(), out_.data() + sent_, out_.size() - sent_,
                                MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return absl::OkStatus();
    if (sent < 0)
      return absl::UnavailableError(absl::StrCat("saying hello: ", std::strerror(errno)));
    sent_ += static_cast<std::size_t>(sent);
  }
  return absl::OkStatus();
}

absl::Status HelloExchange::Receive() {
  while (!whole_) {
    const ssize_t got = ::recv(socket_.get(), in_.data() + got_, in_.size() - got_, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return absl::OkStatus();
    if (got <= 0) {
      return absl::UnavailableError(
          absl::StrCat("the peer hung up: ", got == 0 ? "end of stream" : std::strerror(errno)));
    }
    got_ += static_cast<std::size_t>(got);
    if (got_ < kPreambleBytes) {
      if (packets_) return absl::InvalidArgumentError("a malformed hello");
      continue;
    }
    ASSIGN_OR_RETURN(const std::size_t size,
                     DecodePreamble(std::span(in_).first<kPreambleBytes>()));
    if (packets_ && got_ != kPreambleBytes + size) {
      return absl::InvalidArgumentError("a malformed hello");
    }
    in_.resize(kPreambleBytes + size);
    whole_ = got_ == in_.size();
  }
  return absl::OkStatus();
}

void HelloExchange::End(absl::StatusOr<Hello> theirs) {
  loop_.CancelTimer(timer_);
  if (watched_) loop_.Unwatch(socket_.get());
  watched_ = false;
  const Done done = done_;
  done(std::move(theirs), std::move(socket_));
}

}  // namespace penstock::transfer
