// SPDX-License-Identifier: Apache-2.0
// Which copy a frame is: the space of a copy follows from the frame's own fields, so nobody can pass
// one off as another.
#pragma once

#include <cstddef>
#include <optional>
#include <span>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "kvstore/codecs/frame.h"

namespace penstock::kvstore {

BlockKey CopyKeyOf(const FrameHeader& header);

// Reads `header`: nothing else, and of this copy. As ParseFrameHeader; INVALID_ARGUMENT also: of
// another copy (the message names both), or bytes behind it.
absl::StatusOr<FrameHeader> ParseHeaderOfCopy(const BlockKey& key,
                                              std::span<const std::byte> header,
                                              std::optional<Secret> secret);
// A whole frame, to its last byte, of this copy. As ParseFrame, and above.
absl::StatusOr<Frame> ParseFrameOfCopy(const BlockKey& key, std::span<const std::byte> frame,
                                       std::optional<Secret> secret);

}  // namespace penstock::kvstore
