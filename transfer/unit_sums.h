// SPDX-License-Identifier: Apache-2.0
// Checksums of units that the host cannot load: who has them computed where they lie, and gets them
// some time later. On the loop's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "device/device.h"
#include "transfer/link.h"

namespace penstock::transfer {

class UnitSums {
 public:
  virtual ~UnitSums() = default;

  // The CRC32C of each unit. INTERNAL: the device failed.
  using Done = std::function<void(absl::StatusOr<std::vector<std::uint32_t>> crcs)>;
  // Of units that begin at those offsets from `base` and are made of `runs` each, once the device
  // has come to `written` (null: at once). `done` is called once, in the order of the calls, not
  // from inside. The bytes may change meanwhile: then it is the checksum of neither.
  virtual void Compute(const std::byte* base, std::span<const std::uint64_t> offsets,
                       std::span<const ByteRun> runs, std::shared_ptr<const Event> written,
                       Done done) = 0;
};

}  // namespace penstock::transfer
