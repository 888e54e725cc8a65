// SPDX-License-Identifier: Apache-2.0
// What the ranks of one model, each with a device of its own, exchange while they compute it
// together: the seam between the forward pass and what carries the bytes.
//
// All ranks make the same calls in the same order. A rank that stops, or fails, fails the call of
// every other one by its deadline; after that every call of every rank fails at once, with the
// first reason: nobody can go on alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "base/time.h"
#include "device/device.h"

namespace penstock::transfer {

// One rank's end. One thread at a time, but for Abort: any thread.
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual std::int32_t rank() const = 0;
  virtual std::int32_t ranks() const = 0;

  // `all`: device memory, [ranks, bytes]. What earlier work of `stream` wrote to the own part,
  // number rank(), comes to be in that place of every rank's `all`; later work of `stream` may read
  // it. The own part stays as it is until the next AllGather here has returned: peers may still
  // read it. So calls in a row take turns between two places. DEADLINE_EXCEEDED naming the rank
  // that did not come; ABORTED with the reason of who gave up; INTERNAL where the device failed.
  // What waits for no peer says so in Finish instead.
  virtual absl::Status AllGather(Stream& stream, std::byte* all, std::size_t bytes) = 0;

  // Waits until all work of `stream` is done. As AllGather; after an error the stream's work may
  // never end.
  virtual absl::Status Finish(Stream& stream) = 0;

  // Fails what the others wait for, and all calls from now on.
  virtual void Abort(const absl::Status& why) = 0;
};

// For ranks that are threads of this process, on devices that copy from one another's memory. Waits
// for a peer at most `patience`, which is what the slowest step of one rank may take.
std::vector<std::unique_ptr<Collectives>> MakeLocalCollectives(std::int32_t ranks,
                                                               Duration patience);

// Makes ends for ranks on devices, in their order, that wait as long for one another.
using CollectivesMaker = std::function<std::vector<std::unique_ptr<Collectives>>(
    std::span<Device* const> devices, Duration patience)>;

}  // namespace penstock::transfer
