// SPDX-License-Identifier: Apache-2.0
// For supervisor_test: supervises the shell commands it is given, prints their process ids, and
// waits to be killed.
#include <unistd.h>

#include <cstdio>
#include <future>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "launch/supervisor.h"

int main(int argc, char** argv) {
  using namespace penstock;
  const auto loop = EpollLoop::Make("supervisor").value();
  std::unique_ptr<launch::Supervisor> supervisor;
  loop->Run([&] {
    supervisor = std::make_unique<launch::Supervisor>(
        *loop, launch::Supervisor::Options{},
        launch::Supervisor::Events{.on_line = {},
                                   .on_start =
                                       [](const std::string&, pid_t pid) {
                                         std::printf("%d\n", pid);
                                         std::fflush(stdout);
                                       },
                                   .on_restart = {},
                                   .on_give_up = {}});
    for (int i = 1; i < argc; ++i) {
      supervisor->Start({.name = absl::StrCat(i), .arguments = {"/bin/sh", "-c", argv[i]}});
    }
  });
  std::promise<void>().get_future().wait();
}
