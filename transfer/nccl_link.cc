// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_link.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/device_name.h"
#include "base/status.h"
#include "transfer/frame_socket.h"
#include "transfer/nccl_lane.h"
#include "transfer/tcp_frames.h"

namespace penstock::transfer {
namespace {

constexpr int kLaneShift = 48;
constexpr std::uint64_t kReadMask = (std::uint64_t{1} << kLaneShift) - 1;

class NcclLink final : public Link,
                       private FrameSocket::Events,
                       private NcclLane::Owner,
                       private SegmentTable::Watcher {
 public:
  NcclLink(EpollLoop& loop, UniqueFd socket, SegmentTable& own, std::vector<NcclComms*> gpus,
           NcclLinkOptions options)
      : loop_(loop),
        own_(own),
        gpus_(std::move(gpus)),
        options_(std::move(options)),
        socket_(loop, std::move(socket), own, options_.silence_max) {
    own_.AddWatcher(*this);
  }
  ~NcclLink() override { own_.RemoveWatcher(*this); }

  // ---- Link.

  void Start(LinkEvents& events) override {
    CHECK(events_ == nullptr);
    events_ = &events;
    socket_.Start(*this);
  }
  Kind kind() const override { return Kind::kNccl; }
  std::string Describe() const override {
    const auto open =
        std::ranges::count_if(lanes_, [](const auto& entry) { return entry.second->comm_open(); });
    return absl::StrCat("nccl ", options_.peer_address,
                        open == 0   ? std::string(", no communicator")
                        : open == 1 ? std::string(", communicator open")
                                    : absl::StrCat(", ", open, " communicators open"));
  }
  std::string host() const override { return HostOf(options_.peer_address); }
  bool checks_alone() const override { return true; }

  absl::Status Send(std::span<const std::byte> message) override {
    CHECK(!message.empty());
    CHECK_LE(message.size(), kMessageBytesMax);
    if (!socket_.open()) return absl::UnavailableError("the peer is gone");
    if (socket_.bytes_waiting() + message.size() > kQueueBytesMax) {
      return absl::ResourceExhaustedError(absl::StrCat(
          socket_.bytes_waiting(), " bytes of messages wait, at most ", kQueueBytesMax));
    }
    socket_.Send(FrameType::kMessage, 0, message);
    return absl::OkStatus();
  }
  void Read(ReadId id, SegmentId segment, std::span<const Unit> units, bool checksums) override {
    ReadOn({}, id, segment, units, checksums);
  }
  void ReadOn(Lane lane, ReadId id, SegmentId segment, std::span<const Unit> units,
              bool checksums) override {
    CHECK_LT(std::size_t{lane.to}, gpus_.size());
    CHECK_LE(static_cast<std::uint64_t>(id), kReadMask);
    const auto high = std::uint16_t{options_.first ? lane.to : lane.from};
    const auto low = std::uint16_t{options_.first ? lane.from : lane.to};
    LaneOf(static_cast<std::uint16_t>(high << 8 | low)).Read(id, segment, units, checksums);
  }
  const ReadParts* parts() const override { return &parts_; }
  void Cancel(ReadId id) override {
    for (const auto& [number, lane] : lanes_) lane->Cancel(id);
  }

 private:
  // ---- Lanes.

  std::size_t OwnGpu(std::uint16_t lane) const { return options_.first ? lane >> 8 : lane & 0xff; }
  absl::Status CheckLane(std::uint16_t lane) const {
    const std::size_t theirs = options_.first ? lane & 0xff : lane >> 8;
    if (OwnGpu(lane) < gpus_.size() && theirs < std::size_t{kGpusMax}) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("the peer speaks of its GPU ", theirs,
                                                   " and of GPU ", OwnGpu(lane),
                                                   " here, where there are ", gpus_.size()));
  }
  // Of a frame that makes no lane.
  absl::Status Unknown(std::uint16_t lane) const {
    return absl::InvalidArgumentError(absl::StrCat("the peer answers on lane ", lane,
                                                   ", which is none of the ", lanes_.size(),
                                                   " that there are"));
  }
  NcclLane& LaneOf(std::uint16_t number) {
    std::unique_ptr<NcclLane>& lane = lanes_[number];
    if (lane == nullptr) {
      const std::size_t gpu = OwnGpu(number);
      NcclLane::Owner& link = *this;
      lane = std::make_unique<NcclLane>(
          link, loop_, own_, served_, *gpus_[gpu],
          NcclLane::Options{.number = number, .gpu = gpu, .first = options_.first});
    }
    return *lane;
  }

  bool open() const override { return socket_.open(); }
  void SendFrame(const NcclLane& lane, FrameType type, std::uint64_t id,
                 std::span<const std::byte> payload) override {
    socket_.Send(type, std::uint64_t{lane.number()} << kLaneShift | id, payload);
  }
  void SendNccl(const NcclLane& lane, NcclFrame frame) override {
    frame.lane = lane.number();
    socket_.Send(FrameType::kNccl, 0, frame.Encode());
  }
  void End(const absl::Status& status) override { socket_.End(status); }
  void OnRead(ReadId id, const absl::Status& status, std::span<const std::uint32_t> crcs,
              const ReadParts& parts) override {
    parts_ = parts;
    events_->OnRead(id, status, crcs);
  }

  // ---- Of the socket. May destroy this.

  absl::Status OnFrame(const FrameHeader& header, std::span<const std::byte> payload) override {
    switch (header.type) {
      case FrameType::kMessage:
        events_->OnMessage(payload);
        break;
      case FrameType::kNccl: {
        ASSIGN_OR_RETURN(const NcclFrame frame, NcclFrame::Decode(payload));
        RETURN_IF_ERROR(CheckLane(frame.lane));
        if (frame.type == NcclFrame::Type::kOpen) return LaneOf(frame.lane).OnNccl(frame);
        const auto lane = lanes_.find(frame.lane);
        return lane == lanes_.end() ? Unknown(frame.lane) : lane->second->OnNccl(frame);
      }
      case FrameType::kRead:
      case FrameType::kEnd:
      case FrameType::kCancel: {
        const auto number = static_cast<std::uint16_t>(header.id >> kLaneShift);
        RETURN_IF_ERROR(CheckLane(number));
        FrameHeader of_lane = header;
        of_lane.id &= kReadMask;
        if (header.type == FrameType::kRead) return LaneOf(number).OnFrame(of_lane, payload);
        const auto lane = lanes_.find(number);
        if (lane != lanes_.end()) return lane->second->OnFrame(of_lane, payload);
        // As of an unknown read.
        return header.type == FrameType::kCancel ? absl::OkStatus() : Unknown(number);
      }
      case FrameType::kPing:
      case FrameType::kData:
        break;
    }
    return absl::OkStatus();
  }

  // Nothing of it is touched once an event has destroyed it.
  void OnEnd(const absl::Status& status) override {
    for (const auto& [number, lane] : lanes_) lane->Stop();
    const absl::Status why = absl::UnavailableError(status.message());
    // Who hears of one read's end may ask for others, on other lanes.
    const auto has_ends = [](const auto& entry) { return entry.second->has_ends(); };
    do {
      for (const auto& [number, lane] : lanes_) {
        if (!lane->FailAll(why)) return;
      }
    } while (std::ranges::any_of(lanes_, has_ends));
    events_->OnClosed(status);
  }

  void OnWithdraw(SegmentId segment) override {
    for (const auto& [number, lane] : lanes_) lane->OnWithdraw(segment);
  }

  EpollLoop& loop_;
  SegmentTable& own_;
  const std::vector<NcclComms*> gpus_;
  const NcclLinkOptions options_;
  LinkEvents* events_ = nullptr;
  FrameSocket socket_;
  ReadParts parts_;  // Of the read that is being told.
  ServingBudget served_;
  std::map<std::uint16_t, std::unique_ptr<NcclLane>> lanes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Link>> MakeNcclLink(EpollLoop& loop, UniqueFd socket,
                                                   SegmentTable& own,
                                                   const std::vector<NcclComms*>& gpus,
                                                   NcclLinkOptions options) {
  CHECK(!gpus.empty() && gpus.size() <= std::size_t{kGpusMax});
  for (const NcclComms* const gpu : gpus) {
    if (const absl::Status health = gpu->health(); !health.ok()) {
      return absl::UnavailableError(health.message());
    }
  }
  return std::unique_ptr<Link>(
      std::make_unique<NcclLink>(loop, std::move(socket), own, gpus, std::move(options)));
}

}  // namespace penstock::transfer
