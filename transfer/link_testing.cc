// SPDX-License-Identifier: Apache-2.0
#include "transfer/link_testing.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <thread>

#include "base/check.h"
#include "base/epoll_loop.h"
#include "base/unique_fd.h"
#include "base/virtual_loop.h"
#include "device/cpu_device.h"
#include "transfer/inproc_link.h"
#include "transfer/shm_link.h"
#include "transfer/tcp_link.h"

namespace penstock::transfer {
namespace {

class InprocWorld final : public LinkWorld {
 public:
  Loop& loop() override { return loop_; }
  void On(const std::function<void()>& task) override { task(); }
  bool Until(const std::function<bool()>& done) override {
    const MonoTime end = loop_.Now() + std::chrono::seconds(30);
    while (!done()) {
      if (loop_.RunUntilIdle(1) > 0) continue;
      if (!loop_.next_timer() || *loop_.next_timer() > end) return false;
      loop_.AdvanceTo(*loop_.next_timer());
    }
    return true;
  }
  std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> Connect(SegmentTable& first,
                                                                  SegmentTable& second) override {
    return MakeInprocLinks(loop_, first, second);
  }
  std::byte* Memory(std::size_t bytes, SegmentTable::Segment& segment) override {
    memory_.push_back(std::make_unique<std::byte[]>(bytes));
    segment = {.bytes = {memory_.back().get(), bytes}};
    return memory_.back().get();
  }

 private:
  std::vector<std::unique_ptr<std::byte[]>> memory_;
  VirtualLoop loop_;
};

class ShmWorld final : public EpollWorld {
 public:
  std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> Connect(SegmentTable& first,
                                                                  SegmentTable& second) override {
    std::array<int, 2> fds{};
    CHECK_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()),
             0);
    return {MakeShmLink(epoll_loop(), UniqueFd(fds[0]), first),
            MakeShmLink(epoll_loop(), UniqueFd(fds[1]), second)};
  }
};

class TcpWorld final : public EpollWorld {
 public:
  std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> Connect(SegmentTable& first,
                                                                  SegmentTable& second) override {
    const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    CHECK_EQ(::bind(listener.get(), any, size), 0);
    CHECK_EQ(::listen(listener.get(), 1), 0);
    CHECK_EQ(::getsockname(listener.get(), any, &size), 0);
    UniqueFd near(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    CHECK_EQ(::connect(near.get(), any, size), 0);
    UniqueFd far(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    CHECK(far);
    CHECK_EQ(::fcntl(near.get(), F_SETFL, O_NONBLOCK), 0);
    return {MakeTcpLink(epoll_loop(), std::move(near), first, {}),
            MakeTcpLink(epoll_loop(), std::move(far), second, {})};
  }
};

}  // namespace

EpollWorld::EpollWorld()
    : device_(CpuDevice::Make({}).value()), loop_(EpollLoop::Make("links").value()) {}
EpollWorld::~EpollWorld() = default;

bool EpollWorld::Until(const std::function<bool()>& done) {
  const MonoTime end = SteadyClock().Now() + std::chrono::seconds(30);
  for (bool ended = false; SteadyClock().Now() < end; std::this_thread::yield()) {
    loop_->Run([&] { ended = done(); });
    if (ended) return true;
  }
  return false;
}

std::byte* EpollWorld::Memory(std::size_t bytes, SegmentTable::Segment& segment) {
  memory_.push_back(device_->Allocate(bytes, Sharing::kPeers).value());
  DeviceMemory& made = *memory_.back();
  segment = {.bytes = {made.data(), bytes}, .shared_fd = made.shared_fd()};
  return made.data();
}

std::unique_ptr<LinkWorld> MakeShmWorld() { return std::make_unique<ShmWorld>(); }
std::unique_ptr<LinkWorld> MakeTcpWorld() { return std::make_unique<TcpWorld>(); }
std::unique_ptr<LinkWorld> MakeInprocWorld() { return std::make_unique<InprocWorld>(); }

std::vector<NamedWorld> AllWorlds() {
  std::vector<NamedWorld> worlds = {
      {"inproc", MakeInprocWorld}, {"shm", MakeShmWorld}, {"tcp", MakeTcpWorld}};
#ifdef PENSTOCK_UCX
  worlds.push_back({"ucx", MakeUcxWorld});
  worlds.push_back({"ucx_rendezvous", MakeUcxRendezvousWorld});
#endif
#ifdef PENSTOCK_NCCL_STANDIN
  worlds.push_back({"nccl", MakeNcclWorld});
  worlds.push_back({"nccl_rendezvous", MakeNcclRendezvousWorld});
#endif
  return worlds;
}

}  // namespace penstock::transfer
