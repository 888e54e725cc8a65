// SPDX-License-Identifier: Apache-2.0
#include "transfer/nccl_comm.h"

#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace penstock::transfer {
namespace {

constexpr int kRanks = 2;

absl::Status Late(const char* what, Duration limit) {
  return absl::DeadlineExceededError(
      absl::StrCat("nccl: ", what, " took more than ",
                   std::chrono::duration_cast<std::chrono::milliseconds>(limit).count(), " ms"));
}

}  // namespace

void NcclUser::Leave() {
  const std::lock_guard lock(mutex_);
  loop_ = nullptr;
  events_ = nullptr;
}

void NcclUser::Tell(std::function<void(NcclComms::Events&)> event) {
  const std::lock_guard lock(mutex_);
  if (loop_ == nullptr) return;
  loop_->Post([self = shared_from_this(), event = std::move(event)] {
    NcclComms::Events* events = nullptr;
    {
      const std::lock_guard again(self->mutex_);
      events = self->events_;
    }
    if (events != nullptr) event(*events);  // Only this thread could make it leave.
  });
}

NcclComm::~NcclComm() = default;

absl::Status NcclComm::Error(int error, const char* what) const {
  return absl::UnavailableError(
      absl::StrCat("nccl: ", what, ": ", nccl_->get_error_string(error), " (", error, ")"));
}

absl::Status NcclComm::Begin(CudaDevice& device, const NcclComms::Options& options,
                             std::shared_ptr<NcclRing> ring, MonoTime now) {
  device_ = &device;
  nccl_ = device.plugin().nccl()->api;
  options_ = options;
  ring_ = std::move(ring);
  deadline_ = now + options.open_max;
  device.UseGpu();  // Which tells of a GPU that is lost, as this stream does not.
  stream_ = std::make_unique<CudaStream>(device.plugin(), device.gpu());
  if (stream_->handle() == nullptr) return stream_->Synchronize();  // Which says why.
  rank_ = id_ ? 1 : 0;
  if (!id_) {
    id_.emplace();
    if (const int error = nccl_->get_unique_id(&*id_); error != kNcclSuccess) {
      return Error(error, "making an id");
    }
    user_->Tell([id = *id_](NcclComms::Events& events) { events.OnId(id); });
  }
  const int error = nccl_->comm_init(&handle_, kRanks, *id_, rank_, 1, options.ctas_max);
  if (error == kNcclSuccess || error == kNcclInProgress) return absl::OkStatus();
  return Error(error, "making a communicator");
}

void NcclComm::Move(bool send, std::byte* data, std::size_t bytes) {
  asked_.push_back({send, data, bytes});
  asked_to_yield = false;
}

bool NcclComm::busy() const { return !open_ || !asked_.empty() || launching_ || !moving_.empty(); }

absl::Status NcclComm::Poll(MonoTime now) {
  if (!busy()) return absl::OkStatus();
  int state = kNcclSuccess;
  int error = nccl_->comm_get_async_error(handle_, &state);
  if (error == kNcclSuccess && state != kNcclInProgress) error = state;
  if (error != kNcclSuccess) return Error(error, open_ ? "moving a slot" : "joining the peer");
  const bool settled = state == kNcclSuccess;
  if (!settled && (!open_ || launching_) && now > deadline_) {
    return open_ ? Late("starting to move a slot", options_.move_max)
                 : Late("joining the peer", options_.open_max);
  }
  if (!open_ && settled) RETURN_IF_ERROR(PollOpening(now));
  if (launching_ && settled) RETURN_IF_ERROR(Launched(now));
  while (!moving_.empty()) {
    Duration took{};
    const int query = moving_.front().Take(took);
    if (query == kCudaNotReady) break;
    if (query != kCudaSuccess) {
      return absl::InternalError(
          absl::StrCat("cuda: moving a slot: ", CudaErrorText(device_->plugin(), query)));
    }
    moving_.pop_front();
    progress_ = used_ = now;
    user_->Tell([took](NcclComms::Events& events) { events.OnMoved(took); });
  }
  if (!moving_.empty() && now - progress_ > options_.move_max) {
    return Late("moving a slot", options_.move_max);
  }
  if (open_ && !launching_ && !asked_.empty()) {
    const Slot slot = asked_.front();
    asked_.pop_front();
    return Launch(slot, now);
  }
  return absl::OkStatus();
}

absl::Status NcclComm::PollOpening(MonoTime now) {
  const int error =
      nccl_->comm_register(handle_, ring_->data(), ring_->size_bytes(), &registration_);
  if (error != kNcclSuccess) return Error(error, "registering the staging ring");
  open_ = true;
  used_ = now;
  user_->Tell([ring = ring_](NcclComms::Events& events) { events.OnOpen(ring); });
  return absl::OkStatus();
}

// A group of one: in the order of the stream, which is that of both sides.
absl::Status NcclComm::Launch(const Slot& slot, MonoTime now) {
  CudaStreamHandle const stream = stream_->handle();
  launching_.emplace(device_->plugin());
  if (const int timing = launching_->Begin(stream); timing != kCudaSuccess) {
    return absl::InternalError(
        absl::StrCat("cuda: timing a move: ", CudaErrorText(device_->plugin(), timing)));
  }
  int error = nccl_->group_start();
  if (error != kNcclSuccess) return Error(error, "starting a group");
  error = slot.send ? nccl_->send(slot.data, slot.bytes, 1 - rank_, handle_, stream)
                    : nccl_->recv(slot.data, slot.bytes, 1 - rank_, handle_, stream);
  const int end = nccl_->group_end();
  if (error == kNcclSuccess || error == kNcclInProgress) error = end;
  if (error != kNcclSuccess && error != kNcclInProgress) return Error(error, "moving a slot");
  deadline_ = now + options_.move_max;
  return absl::OkStatus();
}

// Only now is it on the stream, so that an event behind it means something.
absl::Status NcclComm::Launched(MonoTime now) {
  const CudaPlugin& plugin = device_->plugin();
  const int error = launching_->End(stream_->handle());
  if (moving_.empty()) progress_ = now;
  moving_.push_back(*std::exchange(launching_, std::nullopt));
  if (error == kCudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cuda: timing a move: ", CudaErrorText(plugin, error)));
}

void NcclComm::Abort() {
  if (handle_ != nullptr) {
    if (registration_ != nullptr) (void)nccl_->comm_deregister(handle_, registration_);
    (void)nccl_->comm_abort(handle_);
    handle_ = nullptr;
  }
  stream_.reset();
}

}  // namespace penstock::transfer
