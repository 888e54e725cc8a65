// SPDX-License-Identifier: Apache-2.0
#include "kvstore/remote/remote_tier.h"

#include <array>
#include <cstring>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::kvstore {
namespace {

using Kind = RedisReply::Kind;

absl::Status Nonsense(std::string_view command) {
  return absl::UnavailableError(
      absl::StrCat("the server answers ", ToAbsl(command), " with something else"));
}

}  // namespace

std::string RemoteName(const BlockKey& key) {
  return "penstock:1:" + ToHex(key.space.bytes) + ToHex(key.chain.bytes);
}

RemoteTier::RoomFor RemoteTier::In(std::span<std::byte> to) {
  return [to](std::uint32_t bytes) -> absl::StatusOr<std::span<std::byte>> {
    if (bytes <= to.size()) return to;
    return absl::InvalidArgumentError(
        absl::StrCat("the value needs ", bytes, " bytes to be read to, got ", to.size()));
  };
}

class RemoteTier::Impl {
 public:
  // What was asked of the tier. It outlives its end while the server owes replies to it.
  struct Call {
    RedisLink::Command command;  // Until it is sent.
    std::uint64_t replies = 1;   // That are still to come.
    std::size_t put_bytes = 0;
    // Takes a reply; not OK: it is none to this command.
    std::function<absl::Status(Call&, const RedisReply&)> take;
    // How it ends: once, and then it is empty.
    std::function<void(const absl::Status&)> end;
    absl::Status status = {};  // What the replies so far amount to.
    Loop::TimerId timer{};
  };

  Impl(Loop& loop, std::unique_ptr<RedisLink> link, const Options& options)
      : loop_(loop), link_(std::move(link)), options_(options) {
    link_->Start({.up =
                      [this] {
                        down_ = absl::OkStatus();
                        Pump();
                      },
                  .reply = [this](const RedisReply& reply) { return OnReply(reply); },
                  .down = [this](const absl::Status& why, bool up) { OnDown(why, up); }});
  }
  ~Impl() {
    for (const auto* calls : {&queue_, &sent_}) {
      for (const std::shared_ptr<Call>& call : *calls) loop_.CancelTimer(call->timer);
    }
  }

  const Options& options() const { return options_; }
  MonoTime Soon() const { return loop_.Now() + options_.end_within; }

  // `refusal`: ends at once, if it is not OK.
  void Start(std::shared_ptr<Call> call, MonoTime deadline, absl::Status refusal) {
    ++waiting_;
    put_bytes_ += call->put_bytes;
    if (refusal.ok() && waiting_ > options_.calls_max) {
      refusal = absl::ResourceExhaustedError(
          absl::StrCat(waiting_ - 1, " calls wait for the server, of ", options_.calls_max));
    }
    if (refusal.ok() && put_bytes_ > options_.put_bytes_max) {
      refusal = absl::ResourceExhaustedError(
          absl::StrCat(call->put_bytes, " bytes more would wait for the server beside ",
                       put_bytes_ - call->put_bytes, ", of ", options_.put_bytes_max));
    }
    if (refusal.ok()) refusal = down_;
    if (!refusal.ok() || call->replies == 0) return End(*call, refusal);
    call->timer = loop_.At(deadline, [this, weak = std::weak_ptr(call)] {
      const std::shared_ptr<Call> late = weak.lock();
      if (late == nullptr) return;
      ++stats_.late;
      std::erase(queue_, late);
      End(*late, absl::DeadlineExceededError("the server has not answered in time"));
    });
    queue_.push_back(std::move(call));
    Pump();
  }

  void Count(std::uint64_t Stats::*count) { ++(stats_.*count); }
  absl::Status Refused(const RedisReply& reply) {
    ++stats_.refused;
    const std::string text = absl::StrCat("the server says: ", ToAbsl(reply.text));
    return reply.text.starts_with("OOM") ? absl::ResourceExhaustedError(text)
                                         : absl::UnavailableError(text);
  }
  Stats stats() const {
    Stats stats = stats_;
    stats.connected = link_->is_up();
    stats.waiting = waiting_;
    stats.link = link_->stats();
    return stats;
  }

 private:
  void Pump() {
    while (link_->is_up() && !queue_.empty() && sent_.size() < options_.calls_sent_max) {
      const std::shared_ptr<Call> call = std::move(queue_.front());
      queue_.pop_front();
      call->command.replies = call->replies;
      link_->Send(std::exchange(call->command, {}));
      sent_.push_back(call);
    }
  }

  absl::Status OnReply(const RedisReply& reply) {
    CHECK(!sent_.empty());
    const std::shared_ptr<Call> call = sent_.front();
    // One that has ended wants nothing any more: what it gave to be read to is no longer ours.
    if (call->end != nullptr) RETURN_IF_ERROR(call->take(*call, reply));
    if (--call->replies > 0) return absl::OkStatus();
    sent_.pop_front();
    if (call->end != nullptr) End(*call, call->status);
    Pump();
    return absl::OkStatus();
  }

  void OnDown(const absl::Status& why, bool was_up) {
    // A connection that was lost may be made again soon. An attempt that failed: it may not.
    std::deque<std::shared_ptr<Call>> lost = std::exchange(sent_, {});
    if (!was_up) {
      down_ = absl::UnavailableError(absl::StrCat("no remote tier: ", why.message()));
      lost.insert(lost.end(), queue_.begin(), queue_.end());
      queue_.clear();
    }
    for (const std::shared_ptr<Call>& call : lost) {
      if (call->end != nullptr) End(*call, absl::UnavailableError(why.message()));
    }
  }

  void End(Call& call, const absl::Status& status) {
    loop_.CancelTimer(call.timer);
    --waiting_;
    put_bytes_ -= call.put_bytes;
    loop_.Post([end = std::exchange(call.end, nullptr), status, life = std::weak_ptr(life_)] {
      if (!life.expired()) end(status);
    });
    call.take = nullptr;
  }

  Loop& loop_;
  const std::unique_ptr<RedisLink> link_;
  const Options options_;
  std::deque<std::shared_ptr<Call>> queue_;  // Not sent.
  std::deque<std::shared_ptr<Call>> sent_;   // The server owes replies to these, in order.
  std::size_t waiting_ = 0;
  std::size_t put_bytes_ = 0;
  absl::Status down_;  // Why calls need not wait; OK: they may.
  Stats stats_;
  std::shared_ptr<int> life_ = std::make_shared<int>();
};

RemoteTier::RemoteTier(Loop& loop, std::unique_ptr<RedisLink> link, const Options& options)
    : impl_(std::make_unique<Impl>(loop, std::move(link), options)) {}
RemoteTier::~RemoteTier() = default;
RemoteTier::Stats RemoteTier::stats() const { return impl_->stats(); }

void RemoteTier::Put(const BlockKey& key, RemoteBytes frame,
                     std::function<void(absl::Status)> done) {
  impl_->Count(&Stats::puts);
  const std::size_t bytes = frame.bytes.size();
  const std::size_t bytes_max = impl_->options().frame_bytes_max;
  absl::Status refusal;
  if (bytes == 0 || bytes > bytes_max) {
    refusal = absl::InvalidArgumentError(
        absl::StrCat("a frame must have from 1 to ", bytes_max, " bytes, got ", bytes));
  }
  auto call = std::make_shared<Impl::Call>();
  call->put_bytes = bytes;
  const std::string name = RemoteName(key);
  const std::array<std::string_view, 2> arguments = {"SET", name};
  call->command = {.head = RedisCommandHead(arguments, &bytes),
                   .bytes = frame.bytes,
                   .owner = std::move(frame.owner)};
  call->take = [this](Impl::Call& of, const RedisReply& reply) {
    if (reply.kind == Kind::kError) {
      of.status = impl_->Refused(reply);
    } else if (reply.kind != Kind::kStatus) {
      return Nonsense("SET");
    }
    return absl::OkStatus();
  };
  call->end = std::move(done);
  impl_->Start(std::move(call), impl_->Soon(), std::move(refusal));
}

void RemoteTier::Get(const BlockKey& key, RoomFor room, MonoTime deadline,
                     std::function<void(absl::StatusOr<std::uint32_t>)> done) {
  impl_->Count(&Stats::gets);
  auto call = std::make_shared<Impl::Call>();
  const std::string name = RemoteName(key);
  call->command.head = RedisCommandHead(std::array<std::string_view, 2>{"GET", name});
  const auto bytes = std::make_shared<std::uint32_t>();
  call->take = [this, bytes, room = std::move(room)](Impl::Call& of, const RedisReply& reply) {
    if (reply.kind == Kind::kNil) {
      impl_->Count(&Stats::misses);
      of.status = absl::NotFoundError("the server has no such value");
    } else if (reply.kind == Kind::kError) {
      of.status = impl_->Refused(reply);
    } else if (reply.kind != Kind::kValue) {
      return Nonsense("GET");
    } else {
      *bytes = static_cast<std::uint32_t>(reply.value.size());
      const absl::StatusOr<std::span<std::byte>> to = room(*bytes);
      of.status = to.status();
      if (!to.ok()) return absl::OkStatus();
      CHECK(to->size() >= reply.value.size());
      if (!reply.value.empty()) std::memcpy(to->data(), reply.value.data(), reply.value.size());
    }
    return absl::OkStatus();
  };
  call->end = [bytes, done = std::move(done)](const absl::Status& status) {
    status.ok() ? done(*bytes) : done(status);
  };
  impl_->Start(std::move(call), deadline, absl::OkStatus());
}

void RemoteTier::Find(std::span<const BlockKey> keys, MonoTime deadline,
                      std::function<void(absl::StatusOr<std::vector<std::uint32_t>>)> done) {
  auto call = std::make_shared<Impl::Call>();
  absl::Status refusal;
  if (keys.size() > kFindKeysMax) {
    refusal = absl::InvalidArgumentError(
        absl::StrCat("at most ", kFindKeysMax, " keys can be asked for, got ", keys.size()));
    keys = {};
  }
  for (const BlockKey& key : keys) {
    const std::string name = RemoteName(key);
    call->command.head += RedisCommandHead(std::array<std::string_view, 2>{"STRLEN", name});
  }
  call->replies = keys.size();
  const auto found = std::make_shared<std::vector<std::uint32_t>>();
  call->take = [this, found](Impl::Call& of, const RedisReply& reply) {
    if (reply.kind == Kind::kError) {
      of.status = impl_->Refused(reply);
    } else if (reply.kind != Kind::kInteger || reply.integer < 0 || reply.integer > UINT32_MAX) {
      return Nonsense("STRLEN");
    } else {
      found->push_back(static_cast<std::uint32_t>(reply.integer));
    }
    return absl::OkStatus();
  };
  call->end = [found, done = std::move(done)](const absl::Status& status) {
    status.ok() ? done(std::move(*found)) : done(status);
  };
  impl_->Start(std::move(call), deadline, std::move(refusal));
}

void RemoteTier::Delete(const BlockKey& key, std::function<void(absl::Status)> done) {
  auto call = std::make_shared<Impl::Call>();
  const std::string name = RemoteName(key);
  call->command.head = RedisCommandHead(std::array<std::string_view, 2>{"DEL", name});
  call->take = [this](Impl::Call& of, const RedisReply& reply) {
    if (reply.kind == Kind::kError) {
      of.status = impl_->Refused(reply);
    } else if (reply.kind != Kind::kInteger) {
      return Nonsense("DEL");
    }
    return absl::OkStatus();
  };
  call->end = std::move(done);
  impl_->Start(std::move(call), impl_->Soon(), absl::OkStatus());
}

}  // namespace penstock::kvstore
