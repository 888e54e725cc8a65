// SPDX-License-Identifier: Apache-2.0
// The client's end of a bidirectional stream whose state lives on a loop: messages come one at a
// time, and the next is read when the last has been handled; what is sent waits in a bounded queue,
// and a server that does not read is left.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "base/event_loop.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "rpc/convert.h"

namespace penstock::rpc {

template <typename Out, typename In>
class ClientStream final : public grpc::ClientBidiReactor<Out, In> {
 public:
  // Called on the loop.
  struct Events {
    std::function<void(const In& message)> on_message;
    std::function<void(const absl::Status& status)> on_closed;  // Once, and last.
  };
  struct Options {
    std::size_t queue_max = 16384;  // Messages that wait to be sent.
  };
  // Gives the call to its stub: stub->async()->Method(context, reactor).
  using Begin = std::function<void(grpc::ClientContext* context, ClientStream* reactor)>;

  // Lives until gRPC and whoever else holds it are done with it, and ends on the loop; see
  // MakeChannel. `loop` outlives both: Abandon before it ends.
  static std::shared_ptr<ClientStream> Make(Loop& loop, const Options& options, Events events,
                                            const Begin& begin) {
    const std::shared_ptr<ClientStream> stream(new ClientStream(loop, options, std::move(events)));
    stream->held_by_grpc_ = stream;
    begin(&stream->context_, stream.get());
    stream->AddHold();  // Until nothing is started from outside any more.
    stream->StartRead(&stream->in_);
    stream->StartCall();
    return stream;
  }

  // False: the queue is half full; leave out what may be left out. A full one ends the stream.
  bool has_room() {
    const absl::MutexLock lock(&mutex_);
    return queue_.size() < queue_max_ / 2;
  }
  void Send(Out message) {
    const absl::MutexLock lock(&mutex_);
    if (over_ || half_closed_) return;
    if (queue_.size() >= queue_max_) {
      context_.TryCancel();
      return;
    }
    queue_.push_back(std::move(message));
    if (queue_.size() == 1) this->StartWrite(&queue_.front());
  }
  // Nothing is sent after what was.
  void HalfClose() {
    const absl::MutexLock lock(&mutex_);
    if (over_ || std::exchange(half_closed_, true)) return;
    if (queue_.empty()) this->StartWritesDone();
  }
  void Cancel() { context_.TryCancel(); }
  // On the loop: cancels, and waits until gRPC has let go of it. No message is handled any more,
  // not even one that waits on the loop.
  void Abandon() {
    {
      const absl::MutexLock lock(&mutex_);
      abandoned_ = true;
      if (handling_) this->RemoveHold();  // No read will do it.
    }
    context_.TryCancel();
    done_->WaitForNotification();
  }

 private:
  ClientStream(Loop& loop, const Options& options, Events events)
      : loop_(loop), queue_max_(options.queue_max), events_(std::move(events)) {}

  void OnReadDone(bool ok) override {
    {
      const absl::MutexLock lock(&mutex_);
      if (!ok || abandoned_) {
        over_ = true;
        this->RemoveHold();
        return;
      }
      handling_ = true;
    }
    loop_.Post([self = held_by_grpc_] { self->Handle(); });
  }
  // On the loop, as Abandon.
  void Handle() {
    {
      const absl::MutexLock lock(&mutex_);
      if (abandoned_) return;
    }
    events_.on_message(in_);
    const absl::MutexLock lock(&mutex_);
    if (abandoned_) return;
    handling_ = false;
    this->StartRead(&in_);  // The hold keeps the call; a read that fails ends it.
  }
  void OnWriteDone(bool ok) override {
    const absl::MutexLock lock(&mutex_);
    queue_.pop_front();
    if (!ok || over_) queue_.clear();  // The read tells why.
    if (!queue_.empty()) {
      this->StartWrite(&queue_.front());
    } else if (half_closed_ && ok && !over_) {
      this->StartWritesDone();
    }
  }
  void OnDone(const grpc::Status& status) override {
    const std::shared_ptr<absl::Notification> done = done_;
    loop_.Post([self = std::move(held_by_grpc_), why = FromGrpc(status)] {
      self->events_.on_closed(why);
    });
    done->Notify();  // This may be gone.
  }

  Loop& loop_;
  const std::size_t queue_max_;
  const Events events_;
  grpc::ClientContext context_;
  std::shared_ptr<ClientStream> held_by_grpc_;  // Until OnDone.
  In in_;                                       // While a read runs gRPC's, else the loop's.
  const std::shared_ptr<absl::Notification> done_ = std::make_shared<absl::Notification>();
  absl::Mutex mutex_;
  std::deque<Out> queue_ ABSL_GUARDED_BY(mutex_);  // The first is being written.
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;      // Nothing is started any more.
  bool handling_ ABSL_GUARDED_BY(mutex_) = false;  // A message is on the loop: no read runs.
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace penstock::rpc
