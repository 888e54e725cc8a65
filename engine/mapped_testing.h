// SPDX-License-Identifier: Apache-2.0
// For tests: memory of another process, whose blocks may change at any time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include "base/mapped_block.h"

namespace penstock::engine {

class TestMapping : public std::enable_shared_from_this<TestMapping> {
 public:
  explicit TestMapping(std::size_t pages)
      : pages_(pages),
        memory_(new (std::align_val_t(MappedBlock::kPageBytes))
                    std::byte[pages * MappedBlock::kPageBytes]()) {}

  std::byte* page(std::size_t i) { return memory_.get() + i * MappedBlock::kPageBytes; }
  // The block that begins at that page.
  std::shared_ptr<const MappedBlock> Block(std::size_t at) {
    return std::make_shared<Look>(shared_from_this(), at);
  }
  // Of all blocks that were made so far and of that page: their bytes are others from now on.
  void Change(std::size_t at) {
    std::fill_n(page(at), MappedBlock::kPageBytes, std::byte{0xEE});
    changed_page_ = static_cast<int>(at);
  }
  void Restore() { changed_page_ = -1; }
  int live() const { return live_; }

 private:
  class Look final : public MappedBlock {
   public:
    Look(std::shared_ptr<TestMapping> of, std::size_t at) : of_(std::move(of)), at_(at) {
      ++of_->live_;
    }
    ~Look() override { --of_->live_; }
    std::span<const std::byte> memory() const override {
      return {of_->memory_.get(), of_->pages_ * kPageBytes};
    }
    std::size_t offset() const override { return at_ * kPageBytes; }
    bool Changed() const override {
      changed_ = changed_ || of_->changed_page_ == static_cast<int>(at_);
      return changed_;
    }

   private:
    const std::shared_ptr<TestMapping> of_;
    const std::size_t at_;
    mutable std::atomic<bool> changed_ = false;
  };
  struct Delete {
    void operator()(std::byte* memory) const {
      ::operator delete[](memory, std::align_val_t(MappedBlock::kPageBytes));
    }
  };

  const std::size_t pages_;
  const std::unique_ptr<std::byte, Delete> memory_;
  std::atomic<int> changed_page_ = -1;
  std::atomic<int> live_ = 0;
};

}  // namespace penstock::engine
