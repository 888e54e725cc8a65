// SPDX-License-Identifier: Apache-2.0
#include "kvstore/disk/disk_testing.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "kvstore/disk/disk_format.h"

namespace penstock::kvstore {

std::uint64_t FakeDisk::bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& [segment, image] : current_) bytes += image.bytes.size();
  return bytes;
}

FakeDisk::Images FakeDisk::LosePower() {
  for (const auto& [order, write] : unsynced_) {
    const auto at = durable_.find(write.segment);
    if (at == durable_.end()) continue;
    for (std::size_t i = 0; i < write.bytes.size(); i += kSectorBytes) {
      if (Chance(0.5)) continue;
      std::memcpy(at->second.bytes.data() + write.offset + i, write.bytes.data() + i, kSectorBytes);
    }
  }
  return durable_;
}

void FakeDisk::Damage(std::uint64_t segment, std::uint64_t bit) {
  for (Images* images : {&current_, &durable_}) {
    images->at(segment).bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
}

absl::StatusOr<std::vector<DiskIo::File>> FakeDisk::List() {
  std::vector<File> files;
  for (const auto& [segment, image] : current_) {
    files.push_back({.segment = segment, .bytes = image.bytes.size()});
  }
  return files;
}

absl::Status FakeDisk::ReadNow(std::uint64_t segment, std::uint64_t offset,
                               std::span<std::byte> to) {
  const Image& image = current_.at(segment);
  CHECK(offset % kSectorBytes == 0 && to.size() % kSectorBytes == 0);
  CHECK_LE(offset + to.size(), image.bytes.size());
  std::memcpy(to.data(), image.bytes.data() + offset, to.size());
  return absl::OkStatus();
}

absl::Status FakeDisk::SyncNow(std::uint64_t) {
  CHECK(unsynced_.empty());  // Nothing runs yet.
  return absl::OkStatus();
}

absl::Status FakeDisk::Create(std::uint64_t segment, std::uint64_t bytes) {
  if (this->bytes() + bytes > faults_.bytes_max) return absl::ResourceExhaustedError("disk full");
  CHECK(!current_.contains(segment));
  // Files begin with anything, so that what is not written is not zero by chance.
  Image image;
  image.bytes.assign(bytes, static_cast<std::byte>(random_()));
  current_[segment] = image;
  durable_[segment] = std::move(image);
  return absl::OkStatus();
}

void FakeDisk::Remove(std::uint64_t segment) {
  current_.erase(segment);
  durable_.erase(segment);
}

void FakeDisk::Later(Done done, std::function<absl::Status()> act) {
  if (Chance(faults_.hang)) return;
  const bool errs = Chance(faults_.error);
  const Duration latency = Duration(
      std::uniform_int_distribution<std::int64_t>(1, faults_.latency_max.count())(random_));
  loop_.At(loop_.Now() + latency,
           [done = std::move(done), act = std::move(act), errs, life = std::weak_ptr(life_)] {
             if (life.expired()) return;
             done(errs ? absl::DataLossError("the disk says no") : act());
           });
}

void FakeDisk::Write(std::uint64_t segment, std::uint64_t offset, std::vector<DiskBytes> parts,
                     Done done) {
  Unsynced write = {.segment = segment, .offset = offset};
  for (const DiskBytes& part : parts) {
    CHECK(part.bytes.size() % kSectorBytes == 0 &&
          reinterpret_cast<std::uintptr_t>(part.bytes.data()) % kSectorBytes == 0);
    write.bytes.insert(write.bytes.end(), part.bytes.begin(), part.bytes.end());
  }
  CHECK(offset % kSectorBytes == 0);
  CHECK_LE(offset + write.bytes.size(), current_.at(segment).bytes.size());
  const std::uint64_t order = next_++;
  unsynced_[order] = std::move(write);
  Later(std::move(done), [this, order, parts = std::move(parts)] {
    Unsynced& of = unsynced_.at(order);
    of.written = true;
    const auto at = current_.find(of.segment);
    if (at != current_.end()) {
      std::ranges::copy(of.bytes,
                        at->second.bytes.begin() + static_cast<std::ptrdiff_t>(of.offset));
    }
    return absl::OkStatus();
  });
}

void FakeDisk::Read(std::uint64_t segment, std::uint64_t offset, DiskBytes to, Done done) {
  CHECK(current_.contains(segment));
  Later(std::move(done),
        [this, segment, offset, to] { return ReadNow(segment, offset, to.bytes); });
}

void FakeDisk::Sync(std::uint64_t segment, Done done) {
  std::vector<std::uint64_t> covered;
  for (const auto& [order, write] : unsynced_) {
    if (write.segment == segment && write.written) covered.push_back(order);
  }
  Later(std::move(done), [this, covered] {
    for (const std::uint64_t order : covered) {
      const auto at = unsynced_.find(order);
      if (at == unsynced_.end()) continue;
      const auto file = durable_.find(at->second.segment);
      if (file != durable_.end()) {
        std::ranges::copy(at->second.bytes, file->second.bytes.begin() +
                                                static_cast<std::ptrdiff_t>(at->second.offset));
      }
      unsynced_.erase(at);
    }
    return absl::OkStatus();
  });
}

}  // namespace penstock::kvstore
