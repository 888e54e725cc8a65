// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <sys/socket.h>

#include <array>

#include "base/check.h"
#include "base/unique_fd.h"
#include "transfer/link_testing.h"
#include "transfer/ucx_link.h"
#include "transfer/ucx_worker.h"

namespace penstock::transfer {
namespace {

// Each end has a worker of its own, as in two processes.
class UcxWorld final : public EpollWorld {
 public:
  explicit UcxWorld(const std::string& rendezvous) { devices_.rendezvous = rendezvous; }
  ~UcxWorld() override {
    On([&] { workers_ = {}; });
  }
  std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> Connect(SegmentTable& first,
                                                                  SegmentTable& second) override {
    std::array<int, 2> fds{};
    CHECK_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()), 0);
    const std::array<SegmentTable*, 2> tables = {&first, &second};
    std::array<std::unique_ptr<UcxLink>, 2> links;
    for (std::size_t i = 0; i < 2; ++i) {
      if (workers_[i] == nullptr) {
        workers_[i] = UcxWorker::Make(epoll_loop(), devices_).value();
      }
      links[i] = std::make_unique<UcxLink>(epoll_loop(), *workers_[i], *tables[i],
                                           UcxTransport::LinkOptions{});
      links[i]->Keep(UniqueFd(fds[i]));
    }
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(links[i]->Connect(workers_[1 - i]->address(), links[1 - i]->number()).ok());
    }
    return {std::move(links[0]), std::move(links[1])};
  }

 private:
  UcxDevices devices_ = ChooseUcxDevices("127.0.0.1").value();
  std::array<std::unique_ptr<UcxWorker>, 2> workers_;
};

}  // namespace

std::unique_ptr<LinkWorld> MakeUcxWorld() { return std::make_unique<UcxWorld>("inf"); }
std::unique_ptr<LinkWorld> MakeUcxRendezvousWorld() { return std::make_unique<UcxWorld>("2K"); }

}  // namespace penstock::transfer
