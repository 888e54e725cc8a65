// SPDX-License-Identifier: Apache-2.0
// The end of a forward pass: tokens are drawn from the logits where they are, and only rows that are
// wanted themselves go to the host: those that nobody draws from, and those whose draw changes logits
// first (penalties, a bias) or is made on the host alone (typical_p).
//
// Owned by the pass and used by its thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "device/device.h"
#include "engine/sampler.h"
#include "kernels/ops.h"

namespace penstock::engine {

class LogitRows {
 public:
  // Of `logits`, [rows_max, vocab], in `memory`. RESOURCE_EXHAUSTED when the host has no room for as
  // much, where it cannot see them. All that is passed in outlives the result.
  static absl::StatusOr<std::unique_ptr<LogitRows>> Make(Device& device, kernels::Ops& ops,
                                                         const DeviceMemory& memory,
                                                         const float* logits, std::int32_t rows_max,
                                                         std::int32_t vocab);
  // The step at hand: so many rows, and what is drawn from them; CHECKs that it is from these.
  void Begin(std::int32_t rows, std::span<const TokenDraw> draws);
  // Both queue, behind the rows' computation: draws, and copies of what goes to the host. Draw may
  // be called again.
  void Draw();
  void CopyRows();
  // Sets `sampled` of the same draws, once the stream has gone past those.
  void Finish(std::span<TokenDraw> draws);
  // [vocab], from then on; of the rows that go to the host, CHECKed.
  std::span<const float> row(std::int32_t i) const;

 private:
  LogitRows(Device& device, kernels::Ops& ops, const float* logits, std::int32_t rows_max,
            std::int32_t vocab)
      : device_(device),
        ops_(ops),
        logits_(logits),
        rows_max_(rows_max),
        vocab_(static_cast<std::size_t>(vocab)) {}

  Device& device_;
  kernels::Ops& ops_;
  const float* const logits_;    // [rows_max, vocab], on the device
  const std::int32_t rows_max_;  // And draws of one step on the device.
  const std::size_t vocab_;
  std::unique_ptr<DeviceMemory> host_;  // [rows_max, vocab]; null where the host sees logits_.
  // The step at hand.
  std::vector<bool> on_host_;  // Of each row.
  std::vector<kernels::RowDraw> made_on_device_;
  std::vector<std::size_t> device_draws_;  // Which those are.
  std::vector<std::size_t> host_draws_;
  std::span<const kernels::Drawn> drawn_;  // [made_on_device_]
};

}  // namespace penstock::engine
