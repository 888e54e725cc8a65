// SPDX-License-Identifier: Apache-2.0
// disk_peer DIRECTORY FIRST: puts blocks into a disk tier, from block FIRST on, and writes the number
// of each that is promised to be on disk, a byte, until it is killed.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "kvstore/disk/uring_testing.h"

int main(int count, char** arguments) {
  using namespace penstock::kvstore;
  if (count != 3) return 2;
  DiskNode node(arguments[1]);
  if (!node.status_.ok()) return 1;
  const auto first = static_cast<std::uint32_t>(std::atoi(arguments[2]));
  node.loop_->Run([&] {
    for (std::uint32_t i = 0; i < 1000; ++i) {
      const std::uint32_t number = (first + i) % 64;
      // Odd ones come and go.
      if (number % 2 == 1) node.tier_->Drop(KeyOf(number));
      node.Put(number, [number](const absl::Status& status) {
        const auto byte = static_cast<char>(number);
        if (status.ok()) (void)!::write(STDOUT_FILENO, &byte, 1);
      });
    }
  });
  for (;;) ::pause();
}
