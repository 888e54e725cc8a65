// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/copy_frame.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::kvstore {
namespace {

absl::Status CheckKey(const BlockKey& key, const FrameHeader& header) {
  const BlockKey of = CopyKeyOf(header);
  if (of == key) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the frame is of copy ", ToHex(NameOf(of).bytes),
                                                 ", not of ", ToHex(NameOf(key).bytes)));
}

}  // namespace

BlockKey CopyKeyOf(const FrameHeader& header) {
  return {
      CopySpace(header.key.space, static_cast<std::uint32_t>(header.group), ToString(header.loss)),
      header.key.chain};
}

absl::StatusOr<FrameHeader> ParseHeaderOfCopy(const BlockKey& key,
                                              std::span<const std::byte> header,
                                              std::optional<Secret> secret) {
  ASSIGN_OR_RETURN(FrameHeader parsed, ParseFrameHeader(header, {.secret = secret}));
  RETURN_IF_ERROR(CheckKey(key, parsed));
  ASSIGN_OR_RETURN(const std::size_t bytes, FrameHeaderBytesOf(header));
  if (bytes == header.size()) return parsed;
  return absl::InvalidArgumentError(
      absl::StrCat("the frame's header has ", bytes, " bytes, got ", header.size()));
}

absl::StatusOr<Frame> ParseFrameOfCopy(const BlockKey& key, std::span<const std::byte> frame,
                                       std::optional<Secret> secret) {
  ASSIGN_OR_RETURN(Frame parsed, ParseFrame(frame, {.secret = secret}));
  RETURN_IF_ERROR(CheckKey(key, parsed.header));
  return parsed;
}

}  // namespace penstock::kvstore
