// SPDX-License-Identifier: Apache-2.0
#include "rpc/metrics_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace penstock::rpc {
namespace {

std::string Get(const std::string& address, const std::string& path) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
  EXPECT_EQ(::write(fd.get(), request.data(), request.size()),
            static_cast<ssize_t>(request.size()));
  std::string text(1 << 16, '\0');
  std::size_t have = 0;
  for (ssize_t n = 0; (n = ::read(fd.get(), text.data() + have, text.size() - have)) > 0;) {
    have += static_cast<std::size_t>(n);
  }
  text.resize(have);
  return text;
}

TEST(MetricsServerTest, ShowsWhatIsCollected) {
  Counter counter;
  Histogram histogram({1, 2});
  Metrics metrics;
  metrics.Add([&](MetricsWriter& writer) {
    writer.Counter("x_total", "All of x", static_cast<double>(counter.value()), {{"of", "a\"b"}});
    writer.Histogram("y_seconds", "How long", histogram);
    writer.Declare(MetricKind::kGauge, "z", "None yet");
  });
  const auto server = MetricsServer::Start({}, metrics).value();
  counter.Add(7);
  histogram.Observe(1.5);
  histogram.Observe(3);
  const std::string text = Get(server->address(), "/metrics");
  for (const char* line :
       {"# HELP x_total All of x", "# TYPE x_total counter", "x_total{of=\"a\\\"b\"} 7",
        "# TYPE y_seconds histogram", "y_seconds_count 2", "y_seconds_sum 4.5",
        "y_seconds_bucket{le=\"1\"} 0", "y_seconds_bucket{le=\"2\"} 1",
        "y_seconds_bucket{le=\"+Inf\"} 2", "# TYPE z gauge", "penstock_metrics_late_total 0"}) {
    EXPECT_NE(text.find(absl::StrCat(line, "\n")), std::string::npos) << line << "\n" << text;
  }
  EXPECT_NE(Get(server->address(), "/other").find(" 404 "), std::string::npos);
}

TEST(MetricsServerTest, TakenAndImpossibleAddresses) {
  Metrics metrics;
  const auto first = MetricsServer::Start({}, metrics).value();
  int port = 0;
  ASSERT_TRUE(absl::SimpleAtoi(first->address().substr(first->address().rfind(':') + 1), &port));
  const auto second = MetricsServer::Start({.port = port}, metrics);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(absl::StrCat("127.0.0.1:", port)),
            absl::string_view::npos);
  EXPECT_EQ(MetricsServer::Start({.port = 65536}, metrics).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MetricsServer::Start({.host = "no.such.host.invalid"}, metrics).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace penstock::rpc
