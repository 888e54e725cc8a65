// SPDX-License-Identifier: Apache-2.0
// Lets a function that called back, or a task that waited in a loop, see that the object it belongs
// to is gone. One thread.
#pragma once

#include <memory>

namespace penstock::transfer {

class Life {
 public:
  // Shared by all that ask: it must live as long as the last of them.
  class Watch {
   public:
    explicit Watch(std::shared_ptr<const bool> over) : over_(std::move(over)) {}
    bool over() const { return *over_; }

   private:
    std::shared_ptr<const bool> over_;
  };

  Life() = default;
  ~Life() { *over_ = true; }
  Life(const Life&) = delete;
  Life& operator=(const Life&) = delete;

  Watch watch() const { return Watch(over_); }
  // `task`, but not once the object is gone.
  template <typename Task>
  auto Guard(Task task) const {
    return [watch = watch(), task = std::move(task)]() mutable {
      if (!watch.over()) task();
    };
  }

 private:
  const std::shared_ptr<bool> over_ = std::make_shared<bool>(false);
};

}  // namespace penstock::transfer
