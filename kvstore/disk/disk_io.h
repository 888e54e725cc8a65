// SPDX-License-Identifier: Apache-2.0
// What the disk tier asks of files: the seam under which tests lose power, fill the disk and make it
// slow.
//
// Files are segments, by number. Offsets, lengths and addresses are multiples of kSectorBytes. All
// calls on one loop; answers come on it, later, never from inside a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace penstock::kvstore {

// Bytes with who keeps them: whoever reads or writes them holds the owner as long as it does,
// whatever became of the request.
struct DiskBytes {
  std::span<std::byte> bytes;
  std::shared_ptr<const void> owner;
};

class DiskIo {
 public:
  using Done = std::function<void(absl::Status)>;
  struct File {
    std::uint64_t segment = 0;
    std::uint64_t bytes = 0;
  };

  virtual ~DiskIo() = default;

  // At the start, while nothing else runs: these wait for the disk.
  virtual absl::StatusOr<std::vector<File>> List() = 0;
  virtual absl::Status ReadNow(std::uint64_t segment, std::uint64_t offset,
                               std::span<std::byte> to) = 0;
  virtual absl::Status SyncNow(std::uint64_t segment) = 0;

  // Makes a file of that size, with its blocks set aside. RESOURCE_EXHAUSTED: the disk is full.
  virtual absl::Status Create(std::uint64_t segment, std::uint64_t bytes) = 0;
  // No name leads there any more; its room is free once what runs on it has ended.
  virtual void Remove(std::uint64_t segment) = 0;

  // The parts behind each other. DATA_LOSS and RESOURCE_EXHAUSTED (full) as the disk says. On disk
  // only after a Sync that began when `done` had been called.
  virtual void Write(std::uint64_t segment, std::uint64_t offset, std::vector<DiskBytes> parts,
                     Done done) = 0;
  virtual void Read(std::uint64_t segment, std::uint64_t offset, DiskBytes to, Done done) = 0;
  virtual void Sync(std::uint64_t segment, Done done) = 0;
};

}  // namespace penstock::kvstore
