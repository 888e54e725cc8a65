// SPDX-License-Identifier: Apache-2.0
#include "rpc/convert.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::rpc {

// The codes of both are the same numbers.
grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(ToStd(status.message()))};
}

absl::Status FromGrpc(const grpc::Status& status) {
  std::string why = status.error_message();
  // gRPC's words for whoever answers its first bytes as HTTP/1.1 does.
  if (absl::StrContains(why, "http1.x server")) {
    absl::StrAppend(&why,
                    "; OpenAI clients are answered there: penstock up prints the address for "
                    "gRPC beside it");
  }
  return {static_cast<absl::StatusCode>(status.error_code()), why};
}

absl::StatusOr<Attempt> FromProto(const v1::Attempt& message) {
  Attempt attempt{.request_id = message.request_id(), .number = message.number()};
  RETURN_IF_ERROR(CheckRange("length of attempt.request_id",
                             static_cast<std::int64_t>(attempt.request_id.size()), 1, 64));
  if (!std::ranges::all_of(attempt.request_id, [](char c) { return c > ' ' && c <= '~'; })) {
    return absl::InvalidArgumentError("attempt.request_id must be printable ASCII without spaces");
  }
  RETURN_IF_ERROR(CheckRange("attempt.number", attempt.number, 1, 1 << 20));
  return attempt;
}

void ToProto(const Attempt& attempt, v1::Attempt* message) {
  message->set_request_id(attempt.request_id);
  message->set_number(attempt.number);
}

absl::StatusOr<Duration> FromProto(std::string_view field,
                                   const google::protobuf::Duration& message) {
  RETURN_IF_ERROR(CheckRange(absl::StrCat(ToAbsl(field), ".seconds"), message.seconds(), 0, 86400));
  RETURN_IF_ERROR(CheckRange(absl::StrCat(ToAbsl(field), ".nanos"), message.nanos(), 0, 999999999));
  return std::chrono::seconds(message.seconds()) + std::chrono::nanoseconds(message.nanos());
}

void ToProto(Duration duration, google::protobuf::Duration* message) {
  message->set_seconds(duration / std::chrono::seconds(1));
  message->set_nanos(static_cast<std::int32_t>((duration % std::chrono::seconds(1)).count()));
}

absl::StatusOr<Tier> FromProto(std::string_view field, v1::Tier message) {
  RETURN_IF_ERROR(CheckRange(field, int{message}, int{v1::TIER_DEVICE}, int{v1::TIER_REMOTE}));
  return static_cast<Tier>(message);
}

absl::StatusOr<LossClass> FromProto(std::string_view field, v1::LossClass message) {
  RETURN_IF_ERROR(
      CheckRange(field, int{message}, int{v1::LOSS_CLASS_EXACT}, int{v1::LOSS_CLASS_KL2}));
  return static_cast<LossClass>(message);
}

absl::StatusOr<std::vector<Chain>> ChainsFromProto(std::string_view bytes) {
  constexpr std::size_t kBytes = sizeof(Chain::bytes);
  if (bytes.size() % kBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("chains must be 16 bytes each, got ", bytes.size(), " bytes"));
  }
  std::vector<Chain> chains(bytes.size() / kBytes);
  for (std::size_t i = 0; i < chains.size(); ++i) {
    std::memcpy(chains[i].bytes.data(), bytes.data() + i * kBytes, kBytes);
  }
  return chains;
}

absl::StatusOr<std::optional<Chain>> RootFromProto(std::string_view bytes) {
  if (bytes.empty()) return std::nullopt;
  if (bytes.size() != sizeof(Chain::bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("root must be 16 bytes or none, got ", bytes.size(), " bytes"));
  }
  ASSIGN_OR_RETURN(const std::vector<Chain> chains, ChainsFromProto(bytes));
  return chains[0];
}

std::string ChainsToProto(std::span<const Chain> chains) {
  std::string bytes;
  bytes.reserve(chains.size() * sizeof(Chain::bytes));
  for (const Chain& chain : chains) bytes.append(chain.bytes.begin(), chain.bytes.end());
  return bytes;
}

void ToProto(const TierLoad& load, v1::WorkerMessage::TierLoad* message) {
  message->set_tier(static_cast<v1::Tier>(load.tier));
  message->set_bytes(load.bytes);
  message->set_bytes_max(load.bytes_max);
  message->set_copies(load.copies);
  message->set_hits(load.hits);
  message->set_misses(load.misses);
  message->set_bytes_per_s(load.bytes_per_s);
}

absl::Status FromProto(const v1::Error& message) {
  std::string_view text = message.message();
  if (text.size() > kErrorBytesMax) {
    // Not inside a character: a string of a message must be UTF-8.
    std::size_t end = kErrorBytesMax;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
    text = text.substr(0, end);
  }
  return {static_cast<absl::StatusCode>(message.code()), ToAbsl(text)};
}

void ToProto(const absl::Status& status, v1::Error* message) {
  message->set_code(static_cast<std::int32_t>(status.code()));
  message->set_message(std::string(ToStd(status.message())));
}

}  // namespace penstock::rpc
