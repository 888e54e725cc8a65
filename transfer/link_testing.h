// SPDX-License-Identifier: Apache-2.0
// Pairs of links of every kind, for tests that must hold for all of them.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/epoll_loop.h"
#include "base/event_loop.h"
#include "device/device.h"
#include "transfer/link.h"
#include "transfer/segment_table.h"

namespace penstock::transfer {

// A loop, and what makes links on it.
class LinkWorld {
 public:
  virtual ~LinkWorld() = default;
  virtual Loop& loop() = 0;
  // Runs `task` as the loop does: all that touches links.
  virtual void On(const std::function<void()>& task) = 0;
  // Lets the loop run until `done`, which is asked on the loop; false when that did not come in
  // half a minute.
  virtual bool Until(const std::function<bool()>& done) = 0;
  // On the loop. The first end reads from `second`, the second from `first`.
  virtual std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> Connect(SegmentTable& first,
                                                                          SegmentTable& second) = 0;
  // Zeroed memory that links of this kind can serve; it lives as long as the world.
  virtual std::byte* Memory(std::size_t bytes, SegmentTable::Segment& segment) = 0;
};

// Both ends in one process and on one loop, over real sockets and real shared memory.
class EpollWorld : public LinkWorld {
 public:
  EpollWorld();
  ~EpollWorld() override;
  Loop& loop() override { return *loop_; }
  void On(const std::function<void()>& task) override { loop_->Run(task); }
  bool Until(const std::function<bool()>& done) override;
  std::byte* Memory(std::size_t bytes, SegmentTable::Segment& segment) override;

 protected:
  EpollLoop& epoll_loop() { return *loop_; }

 private:
  const std::unique_ptr<Device> device_;
  std::vector<std::unique_ptr<DeviceMemory>> memory_;
  const std::unique_ptr<EpollLoop> loop_;
};

std::unique_ptr<LinkWorld> MakeInprocWorld();  // On a virtual loop.
std::unique_ptr<LinkWorld> MakeShmWorld();     // On a real one, as the next.
std::unique_ptr<LinkWorld> MakeTcpWorld();
std::unique_ptr<LinkWorld> MakeUcxWorld();  // Only where UcxTransport::Built(), as the next.
// All but small frames as over RDMA: announced, and then asked for.
std::unique_ptr<LinkWorld> MakeUcxRendezvousWorld();
// Over the stand-ins for cudart and NCCL, where those are built, with slots smaller than many
// reads; the second with sends that wait for their receives.
std::unique_ptr<LinkWorld> MakeNcclWorld();
std::unique_ptr<LinkWorld> MakeNcclRendezvousWorld();

struct NamedWorld {
  std::string name;
  std::unique_ptr<LinkWorld> (*make)();
};
std::vector<NamedWorld> AllWorlds();

}  // namespace penstock::transfer
