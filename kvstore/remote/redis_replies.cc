// SPDX-License-Identifier: Apache-2.0
#include "kvstore/remote/redis_replies.h"

#include <hiredis/read.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::kvstore {
namespace {

// Statuses, errors, numbers and lengths are lines. The parser looks for their end anew with each
// Feed: no long ones.
constexpr std::size_t kLineBytesMax = 4 << 10;

// The length that a line begins with, once all of it is there.
std::optional<std::uint64_t> DeclaredBytes(std::string_view line) {
  std::uint64_t bytes = 0;
  const char* const end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data(), end, bytes);
  const bool whole = error == std::errc() && stop != end && *stop == '\r';
  return whole ? std::optional(bytes) : std::nullopt;
}

}  // namespace

class RedisReplies::Impl {
 public:
  Impl(std::size_t value_bytes_max, OnReply on_reply)
      : value_bytes_max_(value_bytes_max), on_reply_(std::move(on_reply)) {
    static constexpr redisReplyObjectFunctions kFunctions = {
        .createString = &Impl::OnString,
        .createArray = &Impl::OnArray,
        .createInteger = &Impl::OnInteger,
        .createNil = &Impl::OnNil,
        .freeObject = [](void*) {},
    };
    reader_.reset(::redisReaderCreateWithFunctions(
        const_cast<redisReplyObjectFunctions*>(&kFunctions)));  // It only reads them.
    CHECK(reader_ != nullptr);
    reader_->privdata = this;
    reader_->maxbuf = 0;  // The next value wants the same room: keep it.
  }

  absl::Status Feed(std::span<const std::byte> bytes) {
    if (!status_.ok()) return status_;
    if (::redisReaderFeed(reader_.get(), reinterpret_cast<const char*>(bytes.data()),
                          bytes.size()) != REDIS_OK) {
      return status_ = absl::InvalidArgumentError(reader_->errstr);
    }
    void* reply = this;
    while (reply != nullptr) {
      reply = nullptr;
      if (::redisReaderGetReply(reader_.get(), &reply) != REDIS_OK) {
        // What OnReply said is the reason where there is one.
        if (status_.ok()) status_ = absl::InvalidArgumentError(reader_->errstr);
        return status_;
      }
    }
    return status_ = CheckWaiting();
  }

 private:
  struct Free {
    void operator()(redisReader* reader) const { ::redisReaderFree(reader); }
  };

  static Impl& Of(const redisReadTask* task) { return *static_cast<Impl*>(task->privdata); }
  // What the parser is given for a reply; null is its end.
  void* Hand(const RedisReply& reply) {
    status_ = on_reply_(reply);
    return status_.ok() ? this : nullptr;
  }
  static void* OnString(const redisReadTask* task, char* text, std::size_t bytes) {
    Impl& impl = Of(task);
    if (task->type == REDIS_REPLY_STRING) {
      if (bytes > impl.value_bytes_max_) return impl.TooLarge(bytes);
      return impl.Hand(
          {.kind = RedisReply::Kind::kValue, .value = std::as_bytes(std::span(text, bytes))});
    }
    return impl.Hand({.kind = task->type == REDIS_REPLY_ERROR ? RedisReply::Kind::kError
                                                              : RedisReply::Kind::kStatus,
                      .text = {text, bytes}});
  }
  static void* OnArray(const redisReadTask* task, int elements) {
    Impl& impl = Of(task);
    impl.status_ =
        absl::InvalidArgumentError(absl::StrCat("the server answered with an array of ", elements));
    return nullptr;
  }
  static void* OnInteger(const redisReadTask* task, long long integer) {
    return Of(task).Hand({.kind = RedisReply::Kind::kInteger, .integer = integer});
  }
  static void* OnNil(const redisReadTask* task) {
    return Of(task).Hand({.kind = RedisReply::Kind::kNil});
  }

  void* TooLarge(std::uint64_t bytes) {
    status_ = absl::InvalidArgumentError(absl::StrCat("the server sends a value of ", bytes,
                                                      " bytes, of at most ", value_bytes_max_));
    return nullptr;
  }
  // Whether the reply that has begun may go on.
  absl::Status CheckWaiting() {
    const std::string_view waiting(reader_->buf + reader_->pos, reader_->len - reader_->pos);
    // The parser has taken in the first byte of the reply, by which it is one.
    const bool value = reader_->ridx == 0 && reader_->rstack[0].type == REDIS_REPLY_STRING;
    if (const auto bytes = value ? DeclaredBytes(waiting.substr(0, 32)) : std::nullopt) {
      if (*bytes > value_bytes_max_) TooLarge(*bytes);
      return status_;
    }
    if (waiting.size() <= kLineBytesMax) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("the server sends a line of more than ", kLineBytesMax, " bytes"));
  }

  const std::size_t value_bytes_max_;
  const OnReply on_reply_;
  std::unique_ptr<redisReader, Free> reader_;
  absl::Status status_;
};

RedisReplies::RedisReplies(std::size_t value_bytes_max, OnReply on_reply)
    : impl_(std::make_unique<Impl>(value_bytes_max, std::move(on_reply))) {}
RedisReplies::~RedisReplies() = default;
absl::Status RedisReplies::Feed(std::span<const std::byte> bytes) { return impl_->Feed(bytes); }

}  // namespace penstock::kvstore
