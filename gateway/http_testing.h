// SPDX-License-Identifier: Apache-2.0
// For tests of the HTTP server: a backend that is told by hand what to answer, and a plain client.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/unique_fd.h"
#include "gateway/http_server.h"

namespace penstock::gateway {

// Waits end after a minute, and say so by what they return. Thread-safe.
class FakeBackend {
 public:
  struct Submitted {
    RequestHandle handle{};
    Request request;
    std::shared_ptr<Sink> sink;
  };

  HttpBackend Get();
  // The request of that place in the order of their arrival; CHECKs that it comes.
  Submitted Await(std::size_t index);
  bool AwaitCount(std::size_t count);
  bool AwaitCancelled(RequestHandle handle);
  std::size_t cancelled() const;
  void SetReady(bool ready);

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Submitted> submitted_;
  std::set<RequestHandle> cancelled_;
  bool ready_ = true;
};

// What a request hears from first to last: Started, `text` by single characters, Finished, Usage.
void Answer(Sink& sink, const std::string& text);

// A blocking connection. Reads end after a minute.
class HttpClient {
 public:
  explicit HttpClient(const std::string& address, int receive_buffer_bytes = 0);

  void Send(std::string_view text);
  // Whatever is there up to and with `end`; shorter when the server closed the connection.
  std::string ReadUntil(std::string_view end);
  std::string ReadAll() { return ReadUntil({}); }
  // One whole response: its head, and its body without framing.
  struct Response {
    int status = 0;
    std::string head;
    std::string body;
  };
  Response Read(bool head_only = false);
  // Says that nothing more will be sent.
  void HalfClose();
  void Close() { fd_.Reset(); }
  // The connection goes with a reset.
  void Reset();

 private:
  bool Fill();

  UniqueFd fd_;
  std::string buffer_;
};

std::string PostText(std::string_view target, std::string_view body,
                     std::string_view more_headers = {});

}  // namespace penstock::gateway
