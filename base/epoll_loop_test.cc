// SPDX-License-Identifier: Apache-2.0
#include "base/epoll_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"

namespace penstock {
namespace {

using std::chrono::milliseconds;

std::unique_ptr<EpollLoop> Make() { return EpollLoop::Make("test").value(); }

struct SocketPair {
  SocketPair() {
    std::array<int, 2> fds;
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
    a.Reset(fds[0]);
    b.Reset(fds[1]);
  }
  UniqueFd a, b;
};

TEST(EpollLoopTest, RunsOnAThreadOfThatName) {
  const auto loop = Make();
  std::string name(16, '\0');
  bool on_loop = false;
  loop->Run([&] {
    ::pthread_getname_np(::pthread_self(), name.data(), name.size());
    on_loop = loop->OnLoopThread();
  });
  EXPECT_STREQ(name.c_str(), "test");
  EXPECT_TRUE(on_loop);
  EXPECT_FALSE(loop->OnLoopThread());
}

TEST(EpollLoopTest, TasksOfEachThreadRunInItsOrder) {
  constexpr int kThreads = 8, kTasks = 5000;
  const auto loop = Make();
  std::array<int, kThreads> next{};  // The loop's.
  int wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (std::size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < kTasks; ++i) {
          auto task = [&, t, i] { wrong += next[t]++ != i || !loop->OnLoopThread() ? 1 : 0; };
          if (i % 3 == 0) {
            loop->PostOrRun(task);
          } else {
            loop->Post(task);
          }
        }
      });
    }
  }
  loop->Run([&] {
    EXPECT_EQ(wrong, 0);
    for (const int n : next) EXPECT_EQ(n, kTasks);
  });
}

TEST(EpollLoopTest, WorkIsDoneHereWhileTheThreadSleeps) {
  const auto loop = Make();
  for (bool here = false; !here;) {  // It may be awake.
    loop->PostOrRun([&, me = std::this_thread::get_id()] {
      if (std::this_thread::get_id() == me) here = loop->OnLoopThread();
    });
    loop->Run([] {});
  }
  EXPECT_FALSE(loop->OnLoopThread());
  // What such work asks for later is the loop's again.
  std::promise<std::thread::id> timer, task;
  loop->PostOrRun([&] {
    loop->At(loop->Now(), [&] { timer.set_value(std::this_thread::get_id()); });
    loop->Post([&] { task.set_value(std::this_thread::get_id()); });
  });
  timer.get_future().wait();
  task.get_future().wait();
}

TEST(EpollLoopTest, WorkDoneElsewhereEndsBeforeTheLoop) {
  for (int round = 0; round < 200; ++round) {
    auto loop = Make();
    std::promise<void> begun;
    int state = 0;  // The loop's.
    std::jthread other([&] {
      loop->PostOrRun([&] {
        begun.set_value();
        for (int i = 0; i < 1000; ++i) ++state;
      });
    });
    begun.get_future().wait();
    other.join();
    loop.reset();
    EXPECT_EQ(state, 1000);
  }
}

TEST(EpollLoopTest, TimersRunInOrderNotBeforeTheirTime) {
  const auto loop = Make();
  std::promise<void> done;
  std::string order;
  MonoTime start;
  loop->Run([&] {
    start = loop->Now();
    const auto note = [&](char name) { return [&, name] { order += name; }; };
    loop->At(start + milliseconds(20), [&] {
      EXPECT_GE(loop->Now() - start, milliseconds(20));
      order += 'e';
      done.set_value();
    });
    const Loop::TimerId gone = loop->At(start + milliseconds(4), note('x'));
    loop->At(start + milliseconds(3), note('c'));
    loop->At(start + milliseconds(3), [&, gone] {
      order += 'd';
      loop->CancelTimer(gone);
    });
    loop->At(start - milliseconds(1), note('a'));
    loop->At(start, note('b'));
    EXPECT_EQ(order, "");
  });
  ASSERT_EQ(done.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  EXPECT_EQ(order, "abcde");
}

// The alarm is left where a timer ends early: it neither hides one that comes later, nor one that is due
// before.
TEST(EpollLoopTest, TimersRunWhereOthersWereCancelled) {
  const auto loop = Make();
  std::promise<void> done;
  std::string order;
  Loop::TimerId soon{}, late{};
  loop->Run([&] {
    soon = loop->At(loop->Now() + milliseconds(2), [&] { order += 'x'; });
    late = loop->At(loop->Now() + std::chrono::hours(1), [&] { order += 'y'; });
  });
  loop->Run([&] {
    loop->CancelTimer(soon);
    loop->CancelTimer(late);
    order.clear();  // The machine may have been slow.
  });
  loop->Run([&] {
    loop->At(loop->Now() + milliseconds(6), [&] { done.set_value(); });
    loop->At(loop->Now() + milliseconds(4), [&] { order += 'b'; });
    loop->At(loop->Now() + milliseconds(1), [&] { order += 'a'; });
  });
  ASSERT_EQ(done.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  EXPECT_EQ(order, "ab");
}

TEST(EpollLoopTest, TasksThatRepeatThemselvesStarveNobody) {
  const SocketPair sockets;
  std::promise<void> timer, ready;
  std::function<void()> post_again, set_again;  // Both outlive the loop.
  const auto loop = Make();
  post_again = [&] { loop->Post(post_again); };
  set_again = [&] { loop->At(MonoTime{}, set_again); };
  loop->Run([&] {
    post_again();
    set_again();
    loop->At(loop->Now(), [&] { timer.set_value(); });
    ASSERT_TRUE(loop->Watch(sockets.a.get(), EPOLLIN,
                            [&](std::uint32_t) {
                              loop->Unwatch(sockets.a.get());
                              ready.set_value();
                            })
                    .ok());
  });
  ASSERT_EQ(::write(sockets.b.get(), "x", 1), 1);
  EXPECT_EQ(timer.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  EXPECT_EQ(ready.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
}

TEST(EpollLoopTest, WatchesAreLevelTriggeredAndCanChange) {
  const auto loop = Make();
  const SocketPair sockets;
  std::promise<void> done;
  std::string got;
  loop->Run([&] {
    ASSERT_TRUE(loop->Watch(sockets.a.get(), EPOLLIN,
                            [&](std::uint32_t events) {
                              if ((events & EPOLLOUT) != 0) {
                                loop->Unwatch(sockets.a.get());
                                done.set_value();
                                return;
                              }
                              char c;  // One byte of three: it must be called again.
                              ASSERT_EQ(::read(sockets.a.get(), &c, 1), 1);
                              got += c;
                              if (got.size() == 3) loop->ChangeWatch(sockets.a.get(), EPOLLOUT);
                            })
                    .ok());
  });
  ASSERT_EQ(::write(sockets.b.get(), "abc", 3), 3);
  ASSERT_EQ(done.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  EXPECT_EQ(got, "abc");
}

// Two sockets become ready in one turn; whichever is served first unwatches both, closes the other,
// and opens one that gets its number. Events of the old one must not reach the new one.
TEST(EpollLoopTest, EventsOfAnUnwatchedDescriptorAreDropped) {
  const auto loop = Make();
  auto first = std::make_unique<SocketPair>(), second = std::make_unique<SocketPair>();
  int called = 0, stale = 0;
  loop->Run([&] {
    const auto watch = [&](UniqueFd& mine, UniqueFd& other) {
      ASSERT_TRUE(loop->Watch(mine.get(), EPOLLIN,
                              [&](std::uint32_t) {
                                ++called;
                                loop->Unwatch(mine.get());
                                const int number = other.get();
                                loop->Unwatch(number);
                                other.Reset();
                                other.Reset(::fcntl(mine.get(), F_DUPFD, number));
                                EXPECT_EQ(other.get(), number);
                                EXPECT_TRUE(
                                    loop->Watch(number, 0, [&](std::uint32_t) { ++stale; }).ok());
                              })
                      .ok());
    };
    watch(first->a, second->a);
    watch(second->a, first->a);
    EXPECT_EQ(::write(first->b.get(), "x", 1), 1);
    EXPECT_EQ(::write(second->b.get(), "x", 1), 1);
  });
  loop->Run([] {});
  loop->Run([&] {
    EXPECT_EQ(called, 1);
    EXPECT_EQ(stale, 0);
  });
}

TEST(EpollLoopTest, WhatWaitsIsDestroyedUnrunAndMayCallBack) {
  int destroyed = 0, ran = 0;
  const SocketPair sockets;
  {
    auto loop = Make();
    EpollLoop* const raw = loop.get();
    const auto task = [&] {
      return std::shared_ptr<int>(&ran, [&, raw](int*) {
        ++destroyed;
        raw->Post([&] { ++ran; });
        raw->CancelTimer(Loop::TimerId{1});
      });
    };
    std::promise<void> inside;
    raw->Post([&] {
      raw->At(raw->Now() + std::chrono::hours(1), [held = task()] { ++*held; });
      EXPECT_TRUE(
          raw->Watch(sockets.a.get(), EPOLLIN, [held = task()](std::uint32_t) { ++*held; }).ok());
      raw->Post([held = task()] { ++*held; });
      inside.set_value();
      // The task at hand, until the loop is ending: then tasks are destroyed as they are posted.
      for (bool taken = true; taken;) {
        auto probe = std::make_shared<int>(0);
        const std::weak_ptr<int> seen = probe;
        raw->Post([probe = std::move(probe)] {});
        taken = !seen.expired();
        std::this_thread::yield();
      }
    });
    inside.get_future().wait();
    loop.reset();  // Waits for the task.
  }
  EXPECT_EQ(destroyed, 3);
  EXPECT_EQ(ran, 0);
}

TEST(EpollLoopTest, MisuseIsABug) {
  EXPECT_DEATH((void)EpollLoop::Make("a name of 16 byt"), "CHECK failed");
  EXPECT_DEATH(
      {
        const auto loop = Make();
        loop->Run([&] { loop->Run([] {}); });
      },
      "CHECK failed");
}

}  // namespace
}  // namespace penstock
