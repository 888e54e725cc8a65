// SPDX-License-Identifier: Apache-2.0
#include "base/epoll_loop.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/check.h"
#include "base/status.h"
#include "base/timer_queue.h"
#include "base/unique_fd.h"

namespace penstock {
namespace {

constexpr std::size_t kNameBytesMax = 15;  // Of a thread, in Linux.
constexpr std::size_t kEventsPerTurn = 64;

absl::Status Refused(const char* what) {
  return absl::ResourceExhaustedError(absl::StrCat(what, ": ", std::strerror(errno)));
}

}  // namespace

class EpollLoop::Impl {
 public:
  absl::Status Start(const std::string& name) {
    epoll_.Reset(::epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_) return Refused("epoll_create1");
    wake_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_) return Refused("eventfd");
    alarm_.Reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    if (!alarm_) return Refused("timerfd_create");
    for (const int fd : {wake_.get(), alarm_.get()}) {
      epoll_event event{.events = EPOLLIN, .data = {.u64 = static_cast<std::uint64_t>(fd)}};
      if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return Refused("epoll_ctl");
    }
    try {
      thread_ = std::jthread([this, name] { Serve(name); });
    } catch (const std::system_error& error) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot start a thread: ", error.what()));
    }
    return absl::OkStatus();
  }

  void End() {
    CHECK(!OnLoopThread());
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    Wake();
    if (thread_.joinable()) thread_.join();
    // Destructors of what is left may call back: this is now the loop's thread.
    const std::lock_guard running(running_);
    BeLoopThread();
    std::deque<std::function<void()>> unrun;
    {
      const std::lock_guard lock(mutex_);
      unrun.swap(posted_);
    }
    unrun.clear();
    while (timers_.Pop(MonoTime::max())) {
    }
    while (!watches_.empty()) {
      const auto ready = std::move(watches_.begin()->second.ready);
      watches_.erase(watches_.begin());
    }
  }

  void Post(std::function<void()> task) {
    bool first;
    {
      const std::lock_guard lock(mutex_);
      if (ended_) return;
      first = posted_.empty();
      posted_.push_back(std::move(task));
    }
    if (first && !OnLoopThread()) Wake();
  }

  void PostOrRun(std::function<void()> task) {
    CHECK(!OnLoopThread());
    {
      const std::lock_guard lock(mutex_);
      if (ended_) return;
      posted_.push_back(std::move(task));
    }
    std::unique_lock running(running_, std::try_to_lock);
    if (!running) return Wake();  // It may just have found nothing to do.
    BeLoopThread();
    RunPosted();
    SetAlarm();
    if (HasPosted()) Wake();
    NotLoopThread();
  }

  TimerQueue& timers() {
    CHECK(OnLoopThread());
    return timers_;
  }

  absl::Status Watch(int fd, std::uint32_t events, std::function<void(std::uint32_t)> ready) {
    CHECK(OnLoopThread());
    const std::uint32_t number = ++watch_number_;
    const auto [entry, added] = watches_.try_emplace(fd);
    CHECK(added);
    epoll_event event{.events = events, .data = {.u64 = Tag(fd, number)}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
      watches_.erase(entry);
      return Refused("epoll_ctl");
    }
    entry->second = {number,
                     std::make_shared<std::function<void(std::uint32_t)>>(std::move(ready))};
    return absl::OkStatus();
  }

  void ChangeWatch(int fd, std::uint32_t events) {
    CHECK(OnLoopThread());
    const auto found = watches_.find(fd);
    CHECK(found != watches_.end());
    epoll_event event{.events = events, .data = {.u64 = Tag(fd, found->second.number)}};
    CHECK_EQ(::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event), 0);
  }

  void Unwatch(int fd) {
    CHECK(OnLoopThread());
    const auto found = watches_.find(fd);
    CHECK(found != watches_.end());
    CHECK_EQ(::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr), 0);
    const auto ready = std::move(found->second.ready);
    watches_.erase(found);
  }

  bool OnLoopThread() const {
    return thread_id_.load(std::memory_order_relaxed) == std::this_thread::get_id();
  }

 private:
  struct Watched {
    std::uint32_t number = 0;
    // Shared with the call that is running: the watch may end inside it.
    std::shared_ptr<std::function<void(std::uint32_t)>> ready;
  };

  // Tells a descriptor from one that had its number before: events of a closed one may be in the
  // batch at hand. Numbers of watches begin at 1: those of the loop's own descriptors are 0.
  static std::uint64_t Tag(int fd, std::uint32_t number) {
    return std::uint64_t{number} << 32 | static_cast<std::uint32_t>(fd);
  }

  void Wake() {
    const std::uint64_t one = 1;
    // Fails only when 2^64 - 2 wakings wait: it is awake then.
    (void)!::write(wake_.get(), &one, sizeof(one));
  }

  void BeLoopThread() { thread_id_.store(std::this_thread::get_id(), std::memory_order_relaxed); }
  void NotLoopThread() { thread_id_.store({}, std::memory_order_relaxed); }

  void Serve(const std::string& name) {
    ::pthread_setname_np(::pthread_self(), name.c_str());
    std::array<epoll_event, kEventsPerTurn> events;
    std::unique_lock running(running_);
    BeLoopThread();
    while (!ended()) {
      RunTimers();
      RunPosted();
      SetAlarm();
      const int timeout = HasPosted() ? 0 : -1;
      NotLoopThread();
      running.unlock();
      const int count =
          ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout);
      running.lock();
      BeLoopThread();
      CHECK(count >= 0 || errno == EINTR);
      for (int i = 0; i < count && !ended(); ++i) Handle(events[static_cast<std::size_t>(i)]);
    }
  }

  // Both run what was there at the beginning, so that tasks which add tasks starve nobody.
  void RunTimers() {
    const MonoTime now = SteadyClock().Now();
    for (std::size_t left = timers_.size(); left > 0 && !ended(); --left) {
      const std::function<void()> task = timers_.Pop(now);
      if (!task) return;
      task();
    }
  }
  void RunPosted() {
    std::size_t left;
    {
      const std::lock_guard lock(mutex_);
      left = posted_.size();
    }
    for (; left > 0; --left) {
      std::function<void()> task;
      {
        const std::lock_guard lock(mutex_);
        if (ended_) return;
        task = std::move(posted_.front());
        posted_.pop_front();
      }
      task();
    }
  }

  // An alarm that would ring too early stays: most timers are deadlines that never come, and each
  // change is a system call.
  void SetAlarm() {
    const std::optional<MonoTime> next = timers_.next();
    if (!next || (alarm_time_ && *alarm_time_ <= *next)) return;
    alarm_time_ = next;
    const std::int64_t ns = next->time_since_epoch().count();  // steady_clock: CLOCK_MONOTONIC.
    itimerspec spec{};
    spec.it_value.tv_sec = ns / 1'000'000'000;
    spec.it_value.tv_nsec = ns % 1'000'000'000;
    CHECK_EQ(::timerfd_settime(alarm_.get(), TFD_TIMER_ABSTIME, &spec, nullptr), 0);
  }

  void Handle(const epoll_event& event) {
    const auto fd = static_cast<int>(event.data.u64 & 0xffffffffu);
    const auto number = static_cast<std::uint32_t>(event.data.u64 >> 32);
    if (number == 0) {
      std::uint64_t ignored;
      (void)!::read(fd, &ignored, sizeof(ignored));
      if (fd == alarm_.get()) alarm_time_.reset();
      return;
    }
    const auto found = watches_.find(fd);
    if (found == watches_.end() || found->second.number != number) return;
    const auto ready = found->second.ready;
    (*ready)(event.events);
  }

  bool ended() {
    const std::lock_guard lock(mutex_);
    return ended_;
  }
  bool HasPosted() {
    const std::lock_guard lock(mutex_);
    return !posted_.empty() || ended_;
  }

  UniqueFd epoll_;
  UniqueFd wake_;
  UniqueFd alarm_;
  std::mutex running_;  // Held by the loop's thread, whichever it is; not by one that sleeps.
  // The loop thread's own.
  TimerQueue timers_;
  std::optional<MonoTime> alarm_time_;  // It rings then; none: not at all.
  std::uint32_t watch_number_ = 0;
  absl::flat_hash_map<int, Watched> watches_;

  // Of the standard library: the thread sanitizer cannot look into an installed Abseil.
  std::mutex mutex_;  // Guards the next two.
  std::deque<std::function<void()>> posted_;
  bool ended_ = false;

  std::atomic<std::thread::id> thread_id_;
  std::jthread thread_;
};

absl::StatusOr<std::unique_ptr<EpollLoop>> EpollLoop::Make(const std::string& name) {
  CHECK_LE(name.size(), kNameBytesMax);
  auto impl = std::make_unique<Impl>();
  RETURN_IF_ERROR(impl->Start(name));
  return std::unique_ptr<EpollLoop>(new EpollLoop(std::move(impl)));
}

EpollLoop::EpollLoop(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EpollLoop::~EpollLoop() { impl_->End(); }
void EpollLoop::Post(std::function<void()> task) { impl_->Post(std::move(task)); }
void EpollLoop::PostOrRun(std::function<void()> task) { impl_->PostOrRun(std::move(task)); }
MonoTime EpollLoop::Now() const { return SteadyClock().Now(); }
Loop::TimerId EpollLoop::At(MonoTime when, std::function<void()> task) {
  return impl_->timers().Add(std::max(when, Now()), std::move(task));
}
void EpollLoop::CancelTimer(TimerId timer) { impl_->timers().Cancel(timer); }
absl::Status EpollLoop::Watch(int fd, std::uint32_t events,
                              std::function<void(std::uint32_t events)> ready) {
  return impl_->Watch(fd, events, std::move(ready));
}
void EpollLoop::ChangeWatch(int fd, std::uint32_t events) { impl_->ChangeWatch(fd, events); }
void EpollLoop::Unwatch(int fd) { impl_->Unwatch(fd); }
bool EpollLoop::OnLoopThread() const { return impl_->OnLoopThread(); }

void EpollLoop::Run(std::function<void()> task) {
  CHECK(!OnLoopThread());
  std::mutex mutex;
  std::condition_variable ended;
  bool done = false;
  Post([&] {
    task();
    const std::lock_guard lock(mutex);
    done = true;
    ended.notify_one();  // Under the lock: all three are gone once the caller has it.
  });
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return done; });
}

}  // namespace penstock
