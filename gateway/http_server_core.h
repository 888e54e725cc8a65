// SPDX-License-Identifier: Apache-2.0
// What the connections of an HTTP server share. Inner to http_server*.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <utility>

#include "gateway/http_server.h"

namespace penstock::gateway {

class HttpConnection;

// Bytes that all requests may hold together while they are read.
class HttpBudget {
 public:
  explicit HttpBudget(std::size_t bytes_max) : bytes_max_(bytes_max) {}

  // Takes bytes until it is destroyed.
  class Charge {
   public:
    Charge() = default;
    explicit Charge(HttpBudget* budget) : budget_(budget) {}
    Charge(Charge&& other) noexcept
        : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Charge& operator=(Charge&& other) noexcept {
      std::swap(budget_, other.budget_);
      std::swap(bytes_, other.bytes_);
      return *this;
    }
    ~Charge() {
      if (budget_ != nullptr) budget_->taken_ -= bytes_;
    }
    // False: there is no room.
    bool Add(std::size_t bytes) {
      if (budget_ == nullptr) return true;
      if (budget_->taken_.fetch_add(bytes) + bytes > budget_->bytes_max_) {
        budget_->taken_ -= bytes;
        return false;
      }
      bytes_ += bytes;
      return true;
    }

   private:
    HttpBudget* budget_ = nullptr;
    std::size_t bytes_ = 0;
  };

 private:
  const std::size_t bytes_max_;
  std::atomic<std::size_t> taken_ = 0;
};

struct HttpCore {
  HttpCore(HttpBackend backend_in, const HttpServer::Options& options_in)
      : backend(std::move(backend_in)),
        options(options_in),
        bodies(options.bodies_bytes_max),
        random_(options.seed),
        io(options.threads) {}

  const HttpBackend backend;
  const HttpServer::Options options;
  HttpBudget bodies;

  std::uint64_t Draw() {
    const std::lock_guard lock(mutex_);
    return random_();
  }

  void Add(HttpConnection* connection, std::weak_ptr<HttpConnection> weak) {
    const std::lock_guard lock(mutex_);
    connections_[connection] = std::move(weak);
  }
  void Remove(HttpConnection* connection) {
    const std::lock_guard lock(mutex_);
    connections_.erase(connection);
    if (connections_.empty()) none_.notify_all();
  }
  std::size_t Count() const {
    const std::lock_guard lock(mutex_);
    return connections_.size();
  }
  std::vector<std::shared_ptr<HttpConnection>> Connections() const {
    std::vector<std::shared_ptr<HttpConnection>> all;
    const std::lock_guard lock(mutex_);
    for (const auto& [connection, weak] : connections_) {
      if (auto shared = weak.lock()) all.push_back(std::move(shared));
    }
    return all;
  }
  // Whether none is left by then.
  bool AwaitNone(Duration within) const {
    std::unique_lock lock(mutex_);
    return none_.wait_for(lock, within, [this] { return connections_.empty(); });
  }

 private:
  // Guards the rest. Not Abseil's, into which the thread sanitizer cannot see.
  mutable std::mutex mutex_;
  mutable std::condition_variable none_;
  std::mt19937_64 random_;
  std::map<HttpConnection*, std::weak_ptr<HttpConnection>> connections_;

 public:
  // Last: what waits in them may hold connections, which use the rest.
  boost::asio::io_context io;
  // Long bodies are parsed here, so that streams do not wait for them; one at a time.
  boost::asio::thread_pool parser{1};
};

}  // namespace penstock::gateway
