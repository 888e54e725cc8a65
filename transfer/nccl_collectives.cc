// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_collectives.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "device/cuda_device.h"
#include "device/nccl_api.h"

namespace penstock::transfer {
namespace {

// What a gather takes of a GPU at most: few of 100 and more; engine/memory_plan.cc counts their
// buffers.
constexpr int kCtasMax = 8;

// How far every rank is, and why nobody goes on.
class Progress {
 public:
  // `gpus`: by rank, for people.
  Progress(std::vector<std::string> gpus, Duration patience)
      : patience_(patience), gpus_(std::move(gpus)), gathers_(gpus_.size()) {}

  Duration patience() const { return patience_; }
  std::int32_t ranks() const { return static_cast<std::int32_t>(gathers_.size()); }

  // One more gather of `rank`, unless all is over.
  absl::Status Come(std::int32_t rank) {
    const std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(failed_);
    ++gathers_[static_cast<std::size_t>(rank)];
    return absl::OkStatus();
  }
  absl::Status failed() {
    const std::lock_guard lock(mutex_);
    return failed_;
  }
  // The first reason stays; gives it.
  absl::Status Fail(const absl::Status& why) {
    const std::lock_guard lock(mutex_);
    if (failed_.ok()) failed_ = why;
    return failed_;
  }
  // As of `rank`, which has waited long enough: for the one that is behind most.
  absl::Status Late(std::int32_t rank) {
    const std::lock_guard lock(mutex_);
    if (!failed_.ok()) return failed_;
    const auto behind = std::ranges::min_element(gathers_);
    const std::string within = absl::StrCat(" within ", ToMillis(patience_), " ms of rank ", rank);
    failed_ = absl::DeadlineExceededError(
        *behind < gathers_[static_cast<std::size_t>(rank)]
            ? absl::StrCat("rank ", behind - gathers_.begin(), " of ", gathers_.size(), ", ",
                           gpus_[static_cast<std::size_t>(behind - gathers_.begin())],
                           ", did not come to gather ", *behind + 1, within)
            : absl::StrCat(
                  "the GPUs of ", gathers_.size(), " ranks did not ",
                  *behind == 0 ? std::string("join") : absl::StrCat("end gather ", *behind),
                  within));
    return failed_;
  }

 private:
  const Duration patience_;
  const std::vector<std::string> gpus_;
  // Not Abseil's, into which the thread sanitizer cannot see. Guards all below.
  std::mutex mutex_;
  std::vector<std::uint64_t> gathers_;  // That each rank has come to.
  absl::Status failed_;
};

class NcclEnd final : public Collectives {
 public:
  NcclEnd(std::int32_t rank, CudaDevice& device, std::shared_ptr<Progress> progress)
      : rank_(rank),
        device_(device),
        nccl_(*device.plugin().nccl()->api),
        stream_(device),
        progress_(std::move(progress)) {}
  ~NcclEnd() override {
    if (comm_ != nullptr) (void)nccl_.comm_abort(comm_);
  }

  // Inside a group.
  absl::Status Begin(const NcclId& id) {
    (void)stream_.handle();  // The communicator is of the thread's GPU.
    const int error = nccl_.comm_init(&comm_, ranks(), id, rank_, 1, kCtasMax);
    if (error == kNcclSuccess || error == kNcclInProgress) return absl::OkStatus();
    return Error(error, "making a communicator");
  }
  // Until NCCL has done what it was asked for, which is then on its streams.
  absl::Status Settle(const char* what) {
    const MonoTime end = SteadyClock().Now() + progress_->patience();
    for (;;) {
      RETURN_IF_ERROR(progress_->failed());
      int state = kNcclSuccess;
      int error = nccl_.comm_get_async_error(comm_, &state);
      if (error == kNcclSuccess) error = state;
      if (error == kNcclSuccess) return absl::OkStatus();
      if (error != kNcclInProgress) return Error(error, what);
      if (SteadyClock().Now() > end) return progress_->Late(rank_);
      std::this_thread::yield();
    }
  }

  // One that is lost says so here, to who is told of that.
  void AskGpu() { (void)stream_.Record(); }

  std::int32_t rank() const override { return rank_; }
  std::int32_t ranks() const override { return progress_->ranks(); }

  absl::Status AllGather(Stream& stream, std::byte* all, std::size_t bytes) override {
    RETURN_IF_ERROR(progress_->Come(rank_));
    const std::byte* const own = all + static_cast<std::size_t>(rank_) * bytes;
    const int error =
        nccl_.all_gather(own, all, bytes, comm_, static_cast<CudaStream&>(stream).handle());
    if (error == kNcclSuccess) return absl::OkStatus();
    if (error != kNcclInProgress) return Error(error, "gathering");
    return Settle("gathering");
  }

  absl::Status Finish(Stream& stream) override {
    const MonoTime end = SteadyClock().Now() + progress_->patience();
    const std::unique_ptr<Event> event = stream.Record();
    while (!event->Done()) {
      RETURN_IF_ERROR(Settle("gathering"));
      if (SteadyClock().Now() > end) return progress_->Late(rank_);
      std::this_thread::yield();
    }
    const absl::Status done = stream.Synchronize();
    if (!done.ok()) {
      (void)progress_->Fail(
          absl::AbortedError(absl::StrCat("rank ", rank_, " failed: ", done.message())));
    }
    return done;
  }

  void Abort(const absl::Status& why) override {
    (void)progress_->Fail(
        absl::AbortedError(absl::StrCat("rank ", rank_, " gave up: ", why.message())));
  }

 private:
  absl::Status Error(int error, const char* what) {
    AskGpu();
    return progress_->Fail(
        absl::UnavailableError(absl::StrCat("nccl: ", GpuText(device_.named()), ": ", what, ": ",
                                            nccl_.get_error_string(error), " (", error, ")")));
  }

  const std::int32_t rank_;
  const CudaDevice& device_;
  const NcclApi& nccl_;
  CudaStream stream_;  // To begin with.
  const std::shared_ptr<Progress> progress_;
  NcclCommHandle comm_ = nullptr;
};

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Collectives>>> MakeNcclCollectives(
    std::span<Device* const> devices, Duration patience) {
  CHECK(!devices.empty());
  const CudaPlugin& plugin = static_cast<CudaDevice*>(devices[0])->plugin();
  const NcclLibrary* const library = plugin.nccl == nullptr ? nullptr : plugin.nccl();
  if (library == nullptr || library->api == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("nccl: ", library == nullptr ? "not of this plug-in" : library->why_not));
  }
  const NcclApi& nccl = *library->api;
  NcclId id;
  if (const int error = nccl.get_unique_id(&id); error != kNcclSuccess) {
    return absl::UnavailableError(
        absl::StrCat("nccl: making an id: ", nccl.get_error_string(error), " (", error, ")"));
  }
  std::vector<std::string> gpus;
  for (Device* const device : devices) {
    gpus.push_back(GpuText(static_cast<CudaDevice*>(device)->named()));
  }
  const auto progress = std::make_shared<Progress>(std::move(gpus), patience);
  std::vector<std::unique_ptr<NcclEnd>> ends;
  (void)nccl.group_start();
  absl::Status made;
  for (Device* const device : devices) {
    ends.push_back(std::make_unique<NcclEnd>(static_cast<std::int32_t>(ends.size()),
                                             *static_cast<CudaDevice*>(device), progress));
    if (made.ok()) made = ends.back()->Begin(id);
  }
  (void)nccl.group_end();  // What went wrong is said by the communicators.
  for (const std::unique_ptr<NcclEnd>& end : ends) {
    if (made.ok()) made = end->Settle("joining the GPUs");
  }
  if (!made.ok()) {
    // Before an abort waits for one.
    for (const std::unique_ptr<NcclEnd>& end : ends) end->AskGpu();
    return made;
  }
  std::vector<std::unique_ptr<Collectives>> all;
  for (std::unique_ptr<NcclEnd>& end : ends) all.push_back(std::move(end));
  return all;
}

}  // namespace penstock::transfer
