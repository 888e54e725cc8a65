// SPDX-License-Identifier: Apache-2.0
// How the rows of a step come from one stage of a model to the next, each on a device of its own:
// the seam between the forward pass and what carries the bytes.
//
// Every Send meets one Receive, in order. A side that does not come fails the other one by its
// deadline; after that every call fails at once, with the first reason: nobody can go on alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "base/time.h"
#include "device/device.h"

namespace penstock::transfer {

// One thread sends, one receives.
class Pipe {
 public:
  virtual ~Pipe() = default;

  // `rows`: device memory, [bytes], as earlier work of `stream` wrote it. Later work of `stream` may
  // write there again. Waits until the next stage asks for them. DEADLINE_EXCEEDED naming both
  // stages.
  virtual absl::Status Send(Stream& stream, const std::byte* rows, std::size_t bytes) = 0;

  // What the stage before sends, as many bytes, comes to be in `rows`, which later work of `stream`
  // may read. Waits until it was sent. As Send.
  virtual absl::Status Receive(Stream& stream, std::byte* rows, std::size_t bytes) = 0;
};

// From `stage` to the next one, which are threads of this process, on devices that copy from one
// another's memory. Either waits for the other at most `patience`, and for no device.
std::unique_ptr<Pipe> MakeLocalPipe(std::int32_t stage, Duration patience);

}  // namespace penstock::transfer
