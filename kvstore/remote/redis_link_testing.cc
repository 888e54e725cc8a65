// SPDX-License-Identifier: Apache-2.0
#include "kvstore/remote/redis_link_testing.h"

#include <algorithm>
#include <charconv>
#include <span>
#include <utility>

#include "base/check.h"

namespace penstock::kvstore {
namespace {

constexpr Duration kPause = std::chrono::milliseconds(10);
constexpr Duration kPatience = std::chrono::seconds(5);  // As a real link's.

// The number of a line such as "$12", taken off `text`.
std::size_t TakeNumber(std::string_view& text, char kind) {
  CHECK(!text.empty() && text[0] == kind);
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(text.data() + 1, text.data() + text.size(), number);
  CHECK(error == std::errc());
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  CHECK(text.starts_with("\r\n"));
  text.remove_prefix(2);
  return number;
}

}  // namespace

template <typename F>
void FakeRedisLink::After(Duration wait, F task) {
  loop_.At(loop_.Now() + wait, [task = std::move(task), life = std::weak_ptr(life_)]() mutable {
    if (!life.expired()) task();
  });
}

Duration FakeRedisLink::Latency() {
  return Duration(std::uniform_int_distribution<std::int64_t>(
      0, std::max<std::int64_t>(faults_.latency_max.count(), 0))(random_));
}

void FakeRedisLink::Start(Events events) {
  events_ = std::move(events);
  After(Latency(), [this] { Attempt(); });
}

void FakeRedisLink::Attempt() {
  if (Chance(faults_.refuse)) {
    After(kPause, [this] { Attempt(); });
    return events_.down(absl::UnavailableError("refused"), false);
  }
  up_ = true;
  silent_ = false;
  ++stats_.connections;
  events_.up();
}

void FakeRedisLink::Lose(const char* why) {
  up_ = false;
  ++connection_;
  After(kPause, [this] { Attempt(); });
  After(Duration::zero(), [this, why] { events_.down(absl::UnavailableError(why), true); });
}

void FakeRedisLink::Send(Command command) {
  CHECK(up_);
  serve_next_ = std::max(serve_next_, loop_.Now() + Latency());
  After(serve_next_ - loop_.Now(),
        [this, command = std::move(command), connection = connection_]() mutable {
          if (connection == connection_) Serve(std::move(command));
        });
}

void FakeRedisLink::Serve(Command command) {
  if (silent_) return;
  if (Chance(faults_.silent)) {
    silent_ = true;
    After(kPatience, [this, connection = connection_] {
      if (connection == connection_) Lose("silent");
    });
    return;
  }
  const std::string_view value(reinterpret_cast<const char*>(command.bytes.data()),
                               command.bytes.size());
  stats_.bytes_written += command.head.size() + value.size();
  std::string_view text = command.head;
  for (std::uint64_t reply = 0; reply < command.replies; ++reply) {
    std::vector<std::string_view> arguments(TakeNumber(text, '*'));
    for (std::string_view& argument : arguments) {
      const std::size_t bytes = TakeNumber(text, '$');
      if (text.empty()) {  // It follows behind.
        CHECK_EQ(bytes, value.size());
        argument = value;
        continue;
      }
      CHECK(text.size() >= bytes + 2);
      argument = text.substr(0, bytes);
      text.remove_prefix(bytes + 2);
    }
    const std::uint64_t connection = connection_;
    if (!Answer(arguments, value) && connection == connection_) Lose("nonsense");
    if (connection != connection_) return;
  }
  CHECK(text.empty());
}

bool FakeRedisLink::Reply(const RedisReply& reply) { return events_.reply(reply).ok(); }

bool FakeRedisLink::Answer(const std::vector<std::string_view>& arguments, std::string_view value) {
  using Kind = RedisReply::Kind;
  const std::string_view command = arguments.at(0);
  const std::string name(arguments.at(1));
  if (Chance(faults_.error)) return Reply({.kind = Kind::kError, .text = "ERR not today"});
  if (Chance(faults_.nonsense)) {
    // No answer to anything that is asked here.
    return Reply({.kind = Kind::kInteger, .integer = -1}) && command == "DEL";
  }
  if (command == "SET" && Chance(faults_.full)) {
    return Reply({.kind = Kind::kError, .text = "OOM command not allowed"});
  }
  const bool lose = Chance(faults_.lose);
  if (lose && Chance(0.5)) {
    Lose("lost before it was done");
    return true;
  }
  RedisReply reply;
  const auto found = values_.find(name);
  if (command == "SET") {
    values_[name] = value;
    reply = {.kind = Kind::kStatus, .text = "OK"};
  } else if (command == "GET") {
    if (found != values_.end()) {
      reply = {.kind = Kind::kValue, .value = std::as_bytes(std::span(found->second))};
      stats_.bytes_read += found->second.size();
    }
  } else if (command == "STRLEN") {
    reply = {
        .kind = Kind::kInteger,
        .integer = found == values_.end() ? 0 : static_cast<std::int64_t>(found->second.size())};
  } else {
    CHECK(command == "DEL");
    reply = {.kind = Kind::kInteger, .integer = static_cast<std::int64_t>(values_.erase(name))};
  }
  if (!lose) return Reply(reply);
  Lose("lost after it was done");
  return true;
}

}  // namespace penstock::kvstore
