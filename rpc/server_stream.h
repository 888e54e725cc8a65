// SPDX-License-Identifier: Apache-2.0
// The server's end of a bidirectional stream whose state lives on a loop: messages come one at a
// time, and the next is read when the last has been handled; what is sent waits in a bounded queue,
// and who does not read is cut off.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/event_loop.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "rpc/convert.h"

namespace penstock::rpc {

template <typename In, typename Out>
class ServerStream final : public grpc::ServerBidiReactor<In, Out> {
 public:
  // Called on the loop.
  struct Events {
    std::function<void(const In& message)> on_message;
    // Once, and last: the peer has said all, is gone or was cut off, or the stream was ended here.
    std::function<void()> on_closed;
  };
  struct Options {
    std::size_t queue_max = 16384;  // Messages that wait to be sent.
  };

  // Lives until gRPC and whoever else holds it are done with it. `loop` outlives both.
  static std::shared_ptr<ServerStream> Make(grpc::CallbackServerContext* context, Loop& loop,
                                            const Options& options, Events events) {
    const std::shared_ptr<ServerStream> stream(
        new ServerStream(context, loop, options, std::move(events)));
    stream->held_by_grpc_ = stream;
    stream->StartRead(&stream->in_);
    return stream;
  }

  // After End, and when the peer is gone, nothing is sent.
  void Send(Out message) {
    const absl::MutexLock lock(&mutex_);
    if (ended_ || done_) return;
    if (queue_.size() >= queue_max_) {
      context_->TryCancel();
      return;
    }
    queue_.push_back(std::move(message));
    if (queue_.size() == 1) this->StartWrite(&queue_.front());
  }
  // Ends the stream after what was sent; the first call decides. No message comes any more.
  void End(const absl::Status& status) {
    const absl::MutexLock lock(&mutex_);
    if (ended_ || done_) return;
    ended_ = true;
    status_ = status;
    if (queue_.empty()) FinishLocked();
  }

 private:
  ServerStream(grpc::CallbackServerContext* context, Loop& loop, const Options& options,
               Events events)
      : context_(context),
        loop_(loop),
        queue_max_(options.queue_max),
        events_(std::make_shared<const Events>(std::move(events))) {}

  void OnReadDone(bool ok) override {
    if (!ok) {
      Close();
      return End(absl::OkStatus());
    }
    loop_.Post([self = held_by_grpc_] {
      if (self->over()) return;
      self->events_->on_message(self->in_);
      const absl::MutexLock lock(&self->mutex_);
      if (!self->ended_ && !self->done_) self->StartRead(&self->in_);
    });
  }
  void OnWriteDone(bool ok) override {
    const absl::MutexLock lock(&mutex_);
    queue_.pop_front();
    if (!ok) queue_.clear();  // Nobody reads any more.
    if (!queue_.empty()) {
      this->StartWrite(&queue_.front());
    } else if (ended_) {
      FinishLocked();
    }
  }
  void OnDone() override {
    Close();
    const std::shared_ptr<ServerStream> self = std::move(held_by_grpc_);
    const absl::MutexLock lock(&mutex_);
    done_ = true;
  }
  bool over() {
    const absl::MutexLock lock(&mutex_);
    return ended_ || done_;
  }
  void Close() {
    {
      const absl::MutexLock lock(&mutex_);
      if (std::exchange(closed_, true)) return;
    }
    loop_.Post([events = events_] { events->on_closed(); });
  }
  void FinishLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!std::exchange(finished_, true)) this->Finish(ToGrpc(status_));
  }

  grpc::CallbackServerContext* const context_;
  Loop& loop_;
  const std::size_t queue_max_;
  const std::shared_ptr<const Events> events_;
  std::shared_ptr<ServerStream> held_by_grpc_;  // Until OnDone.
  In in_;                                       // While a read runs gRPC's, else the loop's.
  absl::Mutex mutex_;
  std::deque<Out> queue_ ABSL_GUARDED_BY(mutex_);  // The first is being written.
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;     // Nothing more is to be sent.
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;  // gRPC knows nothing of it any more.
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace penstock::rpc
