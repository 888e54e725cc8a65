// SPDX-License-Identifier: Apache-2.0
#include "transfer/tcp_link.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/crc32c.h"
#include "transfer/life.h"
#include "transfer/puller.h"
#include "transfer/tcp_frames.h"
#include "transfer/unit_cursor.h"
#include "transfer/watched_socket.h"

namespace penstock::transfer {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{64} << 10;
// What lands at once, so that the checksum finds it in the cache.
constexpr std::size_t kLandBytes = std::size_t{256} << 10;
constexpr std::size_t kPartsMax = 128;

class TcpLink final : public Link, private WatchedSocket::Events, private SegmentTable::Watcher {
 public:
  TcpLink(EpollLoop& loop, UniqueFd socket, SegmentTable& own, TcpOptions options)
      : own_(own),
        options_(std::move(options)),
        socket_(loop, std::move(socket), own, options_.silence_max),
        ends_(loop,
              [this](ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs) {
                events_->OnRead(id, status, crcs);
              }) {
    own_.AddWatcher(*this);
  }
  ~TcpLink() override { own_.RemoveWatcher(*this); }

  void Start(LinkEvents& events) override {
    CHECK(events_ == nullptr);
    events_ = &events;
    socket_.Start(*this);
  }
  Kind kind() const override { return Kind::kTcp; }
  std::string Describe() const override { return "tcp " + options_.peer_address; }
  std::string host() const override { return HostOf(options_.peer_address); }

  absl::Status Send(std::span<const std::byte> message) override {
    CHECK(!message.empty());
    CHECK_LE(message.size(), kMessageBytesMax);
    if (!socket_.open()) return absl::UnavailableError("the peer is gone");
    if (socket_.sender().control_bytes() + message.size() > kQueueBytesMax) {
      return absl::ResourceExhaustedError(absl::StrCat(
          socket_.sender().control_bytes(), " bytes of messages wait, at most ", kQueueBytesMax));
    }
    socket_.Send(FrameType::kMessage, 0, message);
    return absl::OkStatus();
  }

  void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) override {
    const std::uint64_t bytes = TotalBytes(units);
    if (!socket_.open()) return ends_.AddFailed(id, absl::UnavailableError("the peer is gone"));
    if (bytes == 0) return ends_.AddEmpty(id, units.size());
    absl::StatusOr<std::vector<std::byte>> request = ReadRequest::EncodeOne(segment, units);
    if (!request.ok()) return ends_.AddFailed(id, request.status());
    waiting_.push_back(id);
    reads_.emplace(id, Landing{.cursor = UnitCursor(units),
                               .crcs = std::vector<std::uint32_t>(units.size(), 0),
                               .checksums = checksums,
                               .left = bytes,
                               .request = *std::move(request),
                               .request_bytes = 0,
                               .drain = false});
    Ask();
  }

  void Cancel(ReadId id) override {
    const auto found = reads_.find(id);
    if (found == reads_.end()) return ends_.Cancel(id);  // Perhaps one of no bytes.
    if (found->second.drain) return;
    ends_.AddFailed(id, absl::CancelledError("read cancelled"));
    if (!found->second.request.empty()) {  // Not yet asked for.
      std::erase(waiting_, id);
      reads_.erase(found);
      return;
    }
    found->second.drain = true;
    socket_.Send(FrameType::kCancel, static_cast<std::uint64_t>(id), {});
  }

 private:
  struct Landing {
    UnitCursor cursor;
    std::vector<std::uint32_t> crcs;
    bool checksums = true;
    std::uint64_t left = 0;
    std::vector<std::byte> request;  // Empty once it was sent.
    std::size_t request_bytes = 0;
    bool drain = false;  // It has ended here: what still comes goes nowhere.
  };

  void OnWithdraw(SegmentId segment) override {
    socket_.sender().DropSegment(segment);
    socket_.Flush();
  }

  // ---- Sending.

  // Asks for the reads that wait, as many as may be under way.
  void Ask() {
    while (!waiting_.empty()) {
      Landing& read = reads_.at(waiting_.front());
      if (asked_ >= kReadsMax || read.request.size() > kRequestsBytesMax - asked_bytes_) return;
      socket_.Send(FrameType::kRead, static_cast<std::uint64_t>(waiting_.front()), read.request);
      ++asked_;
      read.request_bytes = read.request.size();
      asked_bytes_ += read.request_bytes;
      read.request = {};
      waiting_.pop_front();
    }
  }

  // ---- Receiving.

  // Into the pages of the read at hand as far as its frame goes; behind that into the buffer.
  ssize_t Receive(int socket) override {
    std::array<iovec, kPartsMax> parts;
    std::size_t count = 0;
    direct_bytes_ = 0;
    if (data_left_ > 0 && begin_ == end_ && !data_->drain) {
      UnitCursor cursor = data_->cursor;
      const std::size_t most = std::min(data_left_, kLandBytes);
      while (direct_bytes_ < most && count + 1 < parts.size()) {
        const UnitCursor::Piece piece = cursor.Next(most - direct_bytes_);
        parts[count++] = {piece.to, piece.bytes};
        cursor.Advance(piece.bytes);
        direct_bytes_ += piece.bytes;
      }
    }
    if (begin_ > 0) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    if (direct_bytes_ == 0 || direct_bytes_ == data_left_) {
      parts[count++] = {buffer_.data() + end_, buffer_.size() - end_};
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    return ::recvmsg(socket, &message, MSG_DONTWAIT);
  }

  absl::Status Take(std::size_t got, const Life::Watch& life) override {
    const std::size_t direct = std::min(got, direct_bytes_);
    end_ += got - direct;
    if (direct > 0) {
      Land(direct, nullptr);
      if (life.over()) return absl::OkStatus();
    }
    while (socket_.open()) {
      const std::span<const std::byte> rest(buffer_.data() + begin_, end_ - begin_);
      if (data_left_ > 0) {
        if (rest.empty()) break;
        const std::size_t bytes = std::min(rest.size(), data_left_);
        begin_ += bytes;
        Land(bytes, rest.data());
      } else if (header_) {
        const std::size_t bytes =
            std::min<std::size_t>(rest.size(), header_->payload_bytes - payload_.size());
        payload_.insert(payload_.end(), rest.begin(), rest.begin() + static_cast<long>(bytes));
        begin_ += bytes;
        if (payload_.size() < header_->payload_bytes) break;
        const FrameHeader header = *std::exchange(header_, std::nullopt);
        RETURN_IF_ERROR(OnFrame(header, std::exchange(payload_, {})));
      } else {
        if (rest.size() < kHeaderBytes) break;
        begin_ += kHeaderBytes;
        RETURN_IF_ERROR(OnHeader(rest.first<kHeaderBytes>()));
      }
      if (life.over()) return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  absl::Status OnHeader(std::span<const std::byte, kHeaderBytes> bytes) {
    ASSIGN_OR_RETURN(const FrameHeader header, DecodeHeader(bytes));
    if (header.type != FrameType::kData) {
      header_ = header;
      return absl::OkStatus();
    }
    const auto found = reads_.find(ReadId{header.id});
    if (found == reads_.end() || !found->second.request.empty() ||
        header.payload_bytes > found->second.left) {
      return absl::InvalidArgumentError(absl::StrCat(header.payload_bytes, " bytes for read ",
                                                     header.id, ", which did not ask for them"));
    }
    data_ = &found->second;
    data_id_ = found->first;
    data_left_ = header.payload_bytes;
    return absl::OkStatus();
  }

  // The next bytes of the data frame at hand: from the buffer, or already in their place.
  void Land(std::size_t bytes, const std::byte* from) {
    data_left_ -= bytes;
    data_->left -= bytes;
    for (std::size_t left = data_->drain ? 0 : bytes; left > 0;) {
      const UnitCursor::Piece piece = data_->cursor.Next(left);
      std::uint32_t& crc = data_->crcs[piece.unit];
      if (from == nullptr) {
        if (data_->checksums) crc = kernels::Crc32c(crc, piece.to, piece.bytes);
      } else if (data_->checksums) {
        crc = kernels::CopyCrc32c(crc, from, piece.bytes, piece.to);
      } else {
        std::memcpy(piece.to, from, piece.bytes);
      }
      if (from != nullptr) from += piece.bytes;
      data_->cursor.Advance(piece.bytes);
      left -= piece.bytes;
    }
    if (data_->left == 0) EndRead(data_id_, absl::OkStatus());
  }

  // Of a read that was asked for: the peer sends no more of it. May destroy this.
  void EndRead(ReadId id, const absl::Status& status) {
    const auto node = reads_.extract(id);
    const Landing& read = node.mapped();
    --asked_;
    asked_bytes_ -= read.request_bytes;
    Ask();
    if (read.drain) return;
    events_->OnRead(
        id, status,
        status.ok() ? std::span<const std::uint32_t>(read.crcs) : std::span<const std::uint32_t>());
  }

  // May destroy this.
  absl::Status OnFrame(const FrameHeader& header, const std::vector<std::byte>& payload) {
    switch (header.type) {
      case FrameType::kMessage:
        events_->OnMessage(payload);
        return absl::OkStatus();
      case FrameType::kRead: {
        ASSIGN_OR_RETURN(ReadRequest request, ReadRequest::Decode(payload));
        RETURN_IF_ERROR(socket_.sender().Serve(header.id, std::move(request), payload.size()));
        RETURN_IF_ERROR(socket_.CheckReads());
        socket_.Flush();
        return absl::OkStatus();
      }
      case FrameType::kEnd: {
        const auto found = reads_.find(ReadId{header.id});
        if (found == reads_.end() || !found->second.request.empty()) {
          return absl::InvalidArgumentError(
              absl::StrCat("read ", header.id, " ended, but was not under way"));
        }
        const absl::Status status = DecodeEnd(payload);
        if (absl::IsInternal(status)) return absl::InvalidArgumentError(status.message());
        EndRead(ReadId{header.id}, status);
        return absl::OkStatus();
      }
      case FrameType::kCancel:
        socket_.sender().Cancel(header.id);
        socket_.Flush();
        return absl::OkStatus();
      case FrameType::kNccl:
        return absl::InvalidArgumentError("a frame of kind nccl on a link of kind tcp");
      case FrameType::kPing:
      case FrameType::kData:
        return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  // ---- The end.

  // Events may destroy this: nothing of it is touched afterwards.
  void OnBroken(const absl::Status& status) override {
    data_left_ = 0;
    waiting_.clear();
    const absl::Status unavailable = absl::UnavailableError(status.message());
    for (const auto& [id, read] : std::exchange(reads_, {})) {
      if (!read.drain) ends_.AddFailed(id, unavailable);
    }
    if (!ends_.FailAll(unavailable)) return;
    events_->OnClosed(status);
  }

  SegmentTable& own_;
  const TcpOptions options_;
  WatchedSocket socket_;
  LinkEvents* events_ = nullptr;

  std::map<ReadId, Landing> reads_;  // Waiting, under way, and those to drain.
  std::deque<ReadId> waiting_;       // Not yet asked for.
  std::size_t asked_ = 0;
  std::size_t asked_bytes_ = 0;
  Puller ends_;  // Of reads that end without a byte of the peer's.

  // Received and not yet taken: [begin_, end_).
  std::array<std::byte, kBufferBytes> buffer_;
  std::size_t begin_ = 0, end_ = 0;
  std::optional<FrameHeader> header_;  // Its payload is coming in.
  std::vector<std::byte> payload_;
  Landing* data_ = nullptr;  // The data frame at hand, while data_left_ > 0.
  ReadId data_id_{};
  std::size_t data_left_ = 0;
  std::size_t direct_bytes_ = 0;  // What the last Receive asked for in place.
};

}  // namespace

std::unique_ptr<Link> MakeTcpLink(EpollLoop& loop, UniqueFd socket, SegmentTable& own,
                                  TcpOptions options) {
  return std::make_unique<TcpLink>(loop, std::move(socket), own, std::move(options));
}

}  // namespace penstock::transfer
