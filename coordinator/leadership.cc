// SPDX-License-Identifier: Apache-2.0
#include "coordinator/leadership.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "nlohmann/json.hpp"

namespace penstock::coordinator {
namespace {

using rpc::EtcdGranted;
using rpc::EtcdKey;
using rpc::EtcdOp;
using rpc::EtcdTxnResult;

std::string AddressIn(const std::string& value) {
  const nlohmann::json json = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return "";
  const auto address = json.find("address");
  if (address == json.end() || !address->is_string()) return "";
  std::string text = address->get<std::string>();
  const bool plain = std::ranges::all_of(text, [](char c) { return c > ' ' && c < 0x7f; });
  return plain && text.size() <= 1024 ? text : "";
}

}  // namespace

Leadership::Leadership(Loop& loop, rpc::Etcd& etcd, Options options, Events events)
    : loop_(loop),
      etcd_(etcd),
      options_(std::move(options)),
      events_(std::move(events)),
      value_(nlohmann::ordered_json{{"name", options_.name}, {"address", options_.address}}.dump(
          -1, ' ', false, nlohmann::json::error_handler_t::replace)) {
  timer_ = loop_.At(loop_.Now(), [this] { Step(); });
}

Leadership::~Leadership() {
  *self_ = nullptr;
  loop_.CancelTimer(timer_);
}

template <typename T>
rpc::Etcd::Done<T> Leadership::Mine(std::function<void(absl::StatusOr<T>)> call) {
  return [self = self_, call = std::move(call)](absl::StatusOr<T> result) {
    if (*self == nullptr || (*self)->resigned_) return;
    call(std::move(result));
  };
}

void Leadership::Look() {
  if (asking_ || resigned_) return;
  loop_.CancelTimer(timer_);
  Step();
}

void Leadership::Step() {
  asking_ = true;
  etcd_.Txn({.then = {{.kind = EtcdOp::Kind::kGet, .key = options_.key}}},
            Mine<EtcdTxnResult>([this](absl::StatusOr<EtcdTxnResult> result) {
              if (!result.ok()) return Fail(result.status());
              Answered();
              if (result->found.empty()) return Campaign();
              const EtcdKey& key = result->found[0];
              if (lease_ != 0 && key.lease == lease_) return Hold(key.created);
              Follow(key);
            }));
}

void Leadership::Again() {
  asking_ = false;
  timer_ = loop_.At(loop_.Now() + options_.every, [this] { Step(); });
}

void Leadership::Campaign() {
  leader_.clear();
  if (lease_ != 0) return Write();
  const MonoTime asked = loop_.Now();
  etcd_.Grant(options_.ttl, Mine<EtcdGranted>([this, asked](absl::StatusOr<EtcdGranted> granted) {
                if (!granted.ok()) return Fail(granted.status());
                lease_ = granted->lease;
                confirmed_until_ = asked + options_.ttl;
                Write();
              }));
}

void Leadership::Write() {
  etcd_.Txn(
      {.when = {{.key = options_.key, .created = 0}},
       .then =
           {{.kind = EtcdOp::Kind::kPut, .key = options_.key, .value = value_, .lease = lease_}},
       .otherwise = {{.kind = EtcdOp::Kind::kGet, .key = options_.key}}},
      Mine<EtcdTxnResult>([this](absl::StatusOr<EtcdTxnResult> result) {
        if (absl::IsNotFound(result.status())) lease_ = 0;  // It has ended.
        if (!result.ok()) return Fail(result.status());     // It may be written: see Step.
        if (result->held) return Hold(result->revision);
        if (result->found.empty()) return Again();
        Follow(result->found[0]);
      }));
}

void Leadership::Hold(std::int64_t revision) {
  leader_.clear();
  // A store that has lost everything may give the same revision again, but not to the same lease.
  const bool same = revision_ == revision && won_with_ == lease_;
  if (!same) {
    revision_ = revision;
    won_with_ = lease_;
    followed_at_ = loop_.Now();
    events_.on_won(revision);
  }
  const MonoTime asked = loop_.Now();
  etcd_.KeepAlive(lease_, Mine<Duration>([this, asked](absl::StatusOr<Duration> ttl) {
                    if (!ttl.ok()) return Fail(ttl.status());
                    if (*ttl > Duration()) {
                      confirmed_until_ = std::max(confirmed_until_, asked + options_.ttl);
                    } else {
                      lease_ = 0;  // The next look finds out whose the key is now.
                      confirmed_until_ = {};
                    }
                    Again();
                  }));
}

void Leadership::Follow(const EtcdKey& key) {
  lease_ = 0;
  leader_ = AddressIn(key.value);
  if (leading()) Lose();
  Again();
}

void Leadership::Lose() {
  revision_ = 0;
  confirmed_until_ = {};
  events_.on_lost();
}

void Leadership::Answered() {
  if (std::exchange(away_, false)) events_.on_store(absl::OkStatus());
}

void Leadership::Fail(const absl::Status& why) {
  ++errors_;
  if (!std::exchange(away_, true)) events_.on_store(why);
  if (leading()) {
    const MonoTime now = loop_.Now();
    if (confirmed() || events_.followed()) followed_at_ = now;
    if (followed_at_ + options_.alone_for <= now) Lose();
  }
  Again();
}

void Leadership::Resign(std::function<void()> done) {
  resigned_ = true;
  loop_.CancelTimer(timer_);
  revision_ = 0;
  if (lease_ == 0) return loop_.Post(std::move(done));
  etcd_.Revoke(std::exchange(lease_, 0), std::move(done));
}

}  // namespace penstock::coordinator
