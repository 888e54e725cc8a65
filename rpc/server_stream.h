// SPDX-License-Identifier: Apache-2.0
// The server's end of a bidirectional stream whose state lives on a loop: messages come one at a
// time, and the next is read when the last has been handled; what is sent waits in a bounded queue.
// A peer that does not read is cut off, and so is one that says nothing at all.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/event_loop.h"
#include "base/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "rpc/convert.h"

namespace penstock::rpc {

template <typename In, typename Out>
class ServerStream final : public grpc::ServerBidiReactor<In, Out>,
                           public std::enable_shared_from_this<ServerStream<In, Out>> {
 public:
  // Called on the loop.
  struct Events {
    std::function<void(const In& message)> on_message;
    // Once, and last: the peer has said all, is gone or was cut off, or the stream was ended here.
    std::function<void()> on_closed;
  };
  struct Options {
    // Messages that wait to be sent, and their bytes; one is always taken.
    std::size_t queue_max = 16384;
    std::size_t queue_bytes_max = std::size_t{64} << 20;
    // For the peer's first message; without one the stream ends as DEADLINE_EXCEEDED.
    Duration first_within = std::chrono::seconds(10);
    // For the peer to read what was sent before End; then it is cut off.
    Duration end_within = std::chrono::seconds(5);
  };

  // Lives until gRPC and whoever else holds it are done with it. `loop` outlives both.
  static std::shared_ptr<ServerStream> Make(grpc::CallbackServerContext* context, Loop& loop,
                                            const Options& options, Events events) {
    const std::shared_ptr<ServerStream> stream(
        new ServerStream(context, loop, options, std::move(events)));
    stream->held_by_grpc_ = stream;
    loop.Post([weak = stream->weak_from_this()] {
      if (const auto self = weak.lock()) self->AwaitFirst();
    });
    stream->StartRead(&stream->in_);
    return stream;
  }

  // After End, and when the peer is gone, nothing is sent.
  void Send(Out message) {
    const absl::MutexLock lock(&mutex_);
    if (ended_ || done_) return;
    const std::size_t bytes = message.ByteSizeLong();
    if (queue_.size() >= options_.queue_max ||
        (!queue_.empty() && queue_bytes_ + bytes > options_.queue_bytes_max)) {
      context_->TryCancel();
      return;
    }
    queue_bytes_ += bytes;
    queue_.push_back({std::move(message), bytes});
    if (queue_.size() == 1) this->StartWrite(&queue_.front().message);
  }
  // Ends the stream after what was sent; the first call decides. No message comes any more.
  void End(const absl::Status& status) {
    const absl::MutexLock lock(&mutex_);
    if (ended_ || done_) return;
    ended_ = true;
    status_ = status;
    if (queue_.empty()) return FinishLocked();
    loop_.Post([weak = this->weak_from_this()] {
      if (const auto self = weak.lock()) self->AwaitEnd();
    });
  }

 private:
  struct Waiting {
    Out message;
    std::size_t bytes;
  };

  ServerStream(grpc::CallbackServerContext* context, Loop& loop, const Options& options,
               Events events)
      : context_(context),
        loop_(loop),
        options_(options),
        events_(std::make_shared<const Events>(std::move(events))) {}

  void OnReadDone(bool ok) override {
    if (!ok) {
      Close();
      return End(absl::OkStatus());
    }
    loop_.Post([self = held_by_grpc_] {
      self->loop_.CancelTimer(self->first_timer_);
      if (self->over()) return;
      self->events_->on_message(self->in_);
      const absl::MutexLock lock(&self->mutex_);
      if (!self->ended_ && !self->done_) self->StartRead(&self->in_);
    });
  }
  void OnWriteDone(bool ok) override {
    const absl::MutexLock lock(&mutex_);
    queue_bytes_ -= queue_.front().bytes;
    queue_.pop_front();
    if (!ok) queue_.clear();  // Nobody reads any more.
    if (!queue_.empty()) {
      this->StartWrite(&queue_.front().message);
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
  // On the loop. Timers know a stream only as long as somebody else does.
  void AwaitFirst() {
    first_timer_ = loop_.At(loop_.Now() + options_.first_within, [weak = this->weak_from_this()] {
      const auto self = weak.lock();
      if (self == nullptr) return;
      self->End(absl::DeadlineExceededError(
          absl::StrCat("no message came within ", ToSeconds(self->options_.first_within), " s")));
    });
  }
  void AwaitEnd() {
    loop_.At(loop_.Now() + options_.end_within, [weak = this->weak_from_this()] {
      const auto self = weak.lock();
      if (self == nullptr) return;
      const absl::MutexLock lock(&self->mutex_);
      if (!self->finished_ && !self->done_) self->context_->TryCancel();
    });
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
  const Options options_;
  const std::shared_ptr<const Events> events_;
  Loop::TimerId first_timer_{};                 // On the loop.
  std::shared_ptr<ServerStream> held_by_grpc_;  // Until OnDone.
  In in_;                                       // While a read runs gRPC's, else the loop's.
  absl::Mutex mutex_;
  std::deque<Waiting> queue_ ABSL_GUARDED_BY(mutex_);  // The first is being written.
  std::size_t queue_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;  // Nothing more is to be sent.
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;  // gRPC knows nothing of it any more.
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace penstock::rpc
