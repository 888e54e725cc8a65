// SPDX-License-Identifier: Apache-2.0
#include "gateway/http_testing.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace penstock::gateway {
namespace {

constexpr auto kWaitFor = std::chrono::seconds(60);

}  // namespace

HttpBackend FakeBackend::Get() {
  return {.submit =
              [this](Request request, std::shared_ptr<Sink> sink) {
                const std::lock_guard lock(mutex_);
                const RequestHandle handle{submitted_.size() + 1};
                submitted_.push_back({handle, std::move(request), std::move(sink)});
                changed_.notify_all();
                return handle;
              },
          .cancel =
              [this](RequestHandle handle) {
                const std::lock_guard lock(mutex_);
                cancelled_.insert(handle);
                changed_.notify_all();
              },
          .models =
              [this] {
                Gateway::Model model;
                model.name = "m";
                model.context_tokens = 64;
                const std::lock_guard lock(mutex_);
                model.ready = ready_;
                return std::vector<Gateway::Model>{model};
              }};
}

bool FakeBackend::AwaitCount(std::size_t count) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kWaitFor, [&] { return submitted_.size() >= count; });
}

FakeBackend::Submitted FakeBackend::Await(std::size_t index) {
  CHECK(AwaitCount(index + 1));
  const std::lock_guard lock(mutex_);
  return submitted_[index];
}

bool FakeBackend::AwaitCancelled(RequestHandle handle) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kWaitFor, [&] { return cancelled_.contains(handle); });
}

std::size_t FakeBackend::cancelled() const {
  const std::lock_guard lock(mutex_);
  return cancelled_.size();
}

void FakeBackend::SetReady(bool ready) {
  const std::lock_guard lock(mutex_);
  ready_ = ready;
}

void Answer(Sink& sink, const std::string& text) {
  sink.OnEvent(Started{.request_id = "r", .prompt_tokens = 2});
  for (const char c : text) sink.OnEvent(Delta{.text = std::string(1, c)});
  sink.OnEvent(Finished{});
  sink.OnEvent(
      Usage{.prompt_tokens = 2, .completion_tokens = static_cast<std::int32_t>(text.size())});
  sink.OnEnd(absl::OkStatus(), {});
}

HttpClient::HttpClient(const std::string& address, int receive_buffer_bytes)
    : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  const std::size_t colon = address.rfind(':');
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(std::stoi(address.substr(colon + 1))));
  CHECK(::inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr) == 1);
  const timeval limit{.tv_sec = 60, .tv_usec = 0};
  ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  if (receive_buffer_bytes > 0) {
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes,
                 sizeof receive_buffer_bytes);
  }
  CHECK(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
}

void HttpClient::Send(std::string_view text) {
  while (!text.empty()) {
    const ssize_t sent = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (sent <= 0) return;  // The server has closed; what it said can still be read.
    text.remove_prefix(static_cast<std::size_t>(sent));
  }
}

bool HttpClient::Fill() {
  std::array<char, 65536> bytes;
  const ssize_t got = ::recv(fd_.get(), bytes.data(), bytes.size(), 0);
  if (got <= 0) return false;
  buffer_.append(bytes.data(), static_cast<std::size_t>(got));
  return true;
}

std::string HttpClient::ReadUntil(std::string_view end) {
  std::size_t searched = 0;
  for (;;) {
    const std::size_t at = end.empty() ? std::string::npos : buffer_.find(end, searched);
    if (at != std::string::npos) {
      std::string text = buffer_.substr(0, at + end.size());
      buffer_.erase(0, at + end.size());
      return text;
    }
    searched = buffer_.size() < end.size() ? 0 : buffer_.size() - end.size();
    if (!Fill()) return std::exchange(buffer_, {});
  }
}

HttpClient::Response HttpClient::Read(bool head_only) {
  Response response;
  response.head = ReadUntil("\r\n\r\n");
  if (response.head.size() < 12) return response;
  response.status = std::atoi(response.head.c_str() + 9);
  if (head_only) return response;
  if (absl::StrContains(response.head, "Transfer-Encoding: chunked")) {
    for (;;) {
      const std::size_t size = std::strtoul(ReadUntil("\r\n").c_str(), nullptr, 16);
      while (buffer_.size() < size + 2) {
        if (!Fill()) return response;
      }
      response.body += buffer_.substr(0, size);
      buffer_.erase(0, size + 2);
      if (size == 0) return response;
    }
  }
  const std::size_t at = response.head.find("Content-Length: ");
  if (at == std::string::npos) {
    response.body = ReadAll();
    return response;
  }
  const std::size_t size = std::strtoul(response.head.c_str() + at + 16, nullptr, 10);
  while (buffer_.size() < size && Fill()) {
  }
  response.body = buffer_.substr(0, size);
  buffer_.erase(0, response.body.size());
  return response;
}

void HttpClient::HalfClose() { ::shutdown(fd_.get(), SHUT_WR); }

void HttpClient::Reset() {
  const linger now{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  Close();
}

std::string PostText(std::string_view target, std::string_view body,
                     std::string_view more_headers) {
  return absl::StrCat("POST ", ToAbsl(target),
                      " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ",
                      body.size(), "\r\n", ToAbsl(more_headers), "\r\n", ToAbsl(body));
}

}  // namespace penstock::gateway
