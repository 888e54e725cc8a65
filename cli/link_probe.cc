// SPDX-License-Identifier: Apache-2.0
#include "cli/link_probe.h"

#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/epoll_loop.h"
#include "base/status.h"
#include "device/cpu_device.h"
#include "kernels/crc32c.h"
#include "transfer/endpoint.h"

namespace penstock::cli {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
constexpr std::size_t kPieces = 64;  // Beyond what caches of a core hold.
constexpr std::size_t kWindow = 8;   // Reads under way.
constexpr int kPasses = 4;
constexpr int kRounds = 500;
constexpr auto kPatience = std::chrono::seconds(10);

// A folder for Unix sockets, removed at the end.
class Folder {
 public:
  Folder() {
    std::error_code error;
    path_ = (std::filesystem::temp_directory_path(error) / "penstock-XXXXXX").string();
    if (::mkdtemp(path_.data()) == nullptr) path_.clear();
  }
  ~Folder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Two endpoints, each on a loop of its own: one serves a segment and sends messages back, the other
// measures.
class Probe {
 public:
  Probe(transfer::Kind kind, const std::string& address) : kind_(kind), address_(address) {}
  ~Probe() {
    if (reader_loop_ != nullptr) {
      reader_loop_->Run([&] {
        channel_.reset();
        reader_.reset();
      });
    }
    if (server_loop_ != nullptr) {
      server_loop_->Run([&] {
        accepted_.reset();
        server_.reset();
      });
    }
  }

  absl::StatusOr<LinkFigures> Run() {
    RETURN_IF_ERROR(Prepare());
    std::future<absl::StatusOr<LinkFigures>> result = result_.get_future();
    reader_loop_->Post([this] { Connect(); });
    if (result.wait_for(kPatience) != std::future_status::ready) {
      return absl::DeadlineExceededError("it did not end within 10 s");
    }
    return result.get();
  }

 private:
  absl::Status Prepare() {
    if (folder_.path().empty())
      return absl::UnavailableError("no folder can be made for its sockets");
    ASSIGN_OR_RETURN(device_, CpuDevice::Make({}));
    ASSIGN_OR_RETURN(from_, device_->Allocate(kPieces * kPieceBytes, Sharing::kPeers));
    ASSIGN_OR_RETURN(to_, device_->Allocate(kPieces * kPieceBytes));
    for (std::size_t i = 0; i < kPieces; ++i) {
      std::byte* const piece = from_->data() + i * kPieceBytes;
      std::fill(piece, piece + kPieceBytes, static_cast<std::byte>(i + 1));
      crcs_.push_back(kernels::Crc32c(0, piece, kPieceBytes));
    }
    std::fill(to_->data(), to_->data() + kPieces * kPieceBytes,
              std::byte{0});  // Its pages are there.
    ASSIGN_OR_RETURN(server_loop_, EpollLoop::Make("probe-server"));
    ASSIGN_OR_RETURN(reader_loop_, EpollLoop::Make("probe-reader"));
    absl::Status status;
    server_loop_->Run([&] { status = MakeServer(); });
    RETURN_IF_ERROR(status);
    reader_loop_->Run([&] { status = MakeReader(); });
    return status;
  }

  transfer::Endpoint::Options OptionsFor(const char* name) const {
    transfer::Endpoint::Options options;
    options.self = {.name = name, .epoch = 1};
    options.kinds = {kind_};
    options.socket_folder = folder_.path();
    options.tcp_host = address_;
    return options;
  }

  absl::Status MakeServer() {
    auto accept = [this](std::unique_ptr<transfer::Channel> channel) {
      accepted_ = std::move(channel);
      accepted_->Start(
          {.on_message =
               [this](std::span<const std::byte> message) { (void)accepted_->Send(message); },
           .on_closed = [](const absl::Status&) {}});
    };
    ASSIGN_OR_RETURN(server_,
                     transfer::Endpoint::Make(*server_loop_, OptionsFor("probe-server"),
                                              std::move(accept), [](const absl::Status&) {}));
    segment_ = server_->Register(*from_);
    server_address_ = server_->address();
    return absl::OkStatus();
  }

  absl::Status MakeReader() {
    ASSIGN_OR_RETURN(reader_,
                     transfer::Endpoint::Make(
                         *reader_loop_, OptionsFor("probe-reader"),
                         [](std::unique_ptr<transfer::Channel>) {}, [](const absl::Status&) {}));
    return absl::OkStatus();
  }

  void Connect() {
    reader_->Connect({.name = "probe-server", .epoch = 1}, server_address_, [this](auto channel) {
      if (!channel.ok()) return Finish(channel.status());
      channel_ = *std::move(channel);
      channel_->Start({.on_message = [this](std::span<const std::byte>) { OnEcho(); },
                       .on_closed = [this](const absl::Status& status) { Finish(status); }});
      Pass();
    });
  }

  // Reads the segment once.
  void Pass() {
    next_ = 0;
    left_ = kPieces;
    began_ = reader_loop_->Now();
    for (std::size_t i = 0; i < kWindow; ++i) ReadNext();
  }

  void ReadNext() {
    const std::size_t i = next_++;
    transfer::Channel::ReadRequest request;
    request.segment = segment_;
    request.units = {{.from = i * kPieceBytes, .to = to_->data() + i * kPieceBytes, .runs = runs_}};
    request.crcs = {crcs_[i]};
    request.deadline = reader_loop_->Now() + kPatience;
    channel_->Read(std::move(request), [this](const absl::Status& status) {
      if (!status.ok()) return Finish(status);
      if (next_ < kPieces) ReadNext();
      if (--left_ == 0) OnPassed();
    });
  }

  void OnPassed() {
    const double seconds = ToSeconds(reader_loop_->Now() - began_);
    figures_.bytes_per_s = std::max(
        figures_.bytes_per_s, static_cast<double>(kPieces * kPieceBytes) / std::max(seconds, 1e-9));
    if (++passes_ < kPasses) return Pass();
    SendPing();
  }

  void SendPing() {
    began_ = reader_loop_->Now();
    const std::byte ping[16] = {};
    const absl::Status sent = channel_->Send(ping);
    if (!sent.ok()) Finish(sent);
  }

  void OnEcho() {
    const Duration took = reader_loop_->Now() - began_;
    if (rounds_ == 0 || took < figures_.round_trip) figures_.round_trip = took;
    if (++rounds_ < kRounds) return SendPing();
    Finish(absl::OkStatus());
  }

  void Finish(const absl::Status& status) {
    if (std::exchange(finished_, true)) return;
    if (status.ok()) return result_.set_value(figures_);
    result_.set_value(status);
  }

  const transfer::Kind kind_;
  const std::string address_;
  const Folder folder_;
  const std::vector<transfer::ByteRun> runs_ = {{0, 0, static_cast<std::uint32_t>(kPieceBytes)}};
  std::unique_ptr<CpuDevice> device_;
  std::unique_ptr<DeviceMemory> from_, to_;
  std::vector<std::uint32_t> crcs_;
  std::unique_ptr<EpollLoop> server_loop_, reader_loop_;
  // The server's.
  std::unique_ptr<transfer::Endpoint> server_;
  std::unique_ptr<transfer::Channel> accepted_;
  transfer::SegmentId segment_{};
  std::string server_address_;
  // The reader's.
  std::unique_ptr<transfer::Endpoint> reader_;
  std::unique_ptr<transfer::Channel> channel_;
  std::size_t next_ = 0, left_ = 0;
  int passes_ = 0, rounds_ = 0;
  MonoTime began_;
  LinkFigures figures_;
  bool finished_ = false;
  std::promise<absl::StatusOr<LinkFigures>> result_;
};

}  // namespace

absl::StatusOr<LinkFigures> MeasureLink(transfer::Kind kind, const std::string& address) {
  return Probe(kind, address).Run();
}

}  // namespace penstock::cli
