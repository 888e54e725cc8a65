// SPDX-License-Identifier: Apache-2.0
#include "transfer/link_testing.h"

#include "base/virtual_loop.h"
#include "transfer/inproc_link.h"

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

}  // namespace

std::unique_ptr<LinkWorld> MakeInprocWorld() { return std::make_unique<InprocWorld>(); }

std::vector<NamedWorld> AllWorlds() { return {{"inproc", MakeInprocWorld}}; }

}  // namespace penstock::transfer
