// SPDX-License-Identifier: Apache-2.0
#include "rpc/metrics_server.h"

#include <netdb.h>
#include <sys/socket.h>

#include <exception>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "prometheus/metric_family.h"

namespace penstock::rpc {
namespace {

prometheus::MetricType TypeOf(MetricKind kind) {
  switch (kind) {
    case MetricKind::kCounter:
      return prometheus::MetricType::Counter;
    case MetricKind::kGauge:
      return prometheus::MetricType::Gauge;
    case MetricKind::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

prometheus::ClientMetric::Histogram Convert(const Histogram::Reading& reading) {
  prometheus::ClientMetric::Histogram histogram;
  for (std::size_t i = 0; i < reading.counts.size(); ++i) {
    histogram.sample_count += reading.counts[i];
    const bool last = i == reading.bounds.size();
    histogram.bucket.push_back(
        {.cumulative_count = histogram.sample_count,
         .upper_bound = last ? std::numeric_limits<double>::infinity() : reading.bounds[i]});
  }
  histogram.sample_sum = reading.sum;
  return histogram;
}

prometheus::MetricFamily Convert(const MetricFamily& family) {
  prometheus::MetricFamily out = {
      .name = family.name, .help = family.help, .type = TypeOf(family.kind), .metric = {}};
  for (const MetricSample& sample : family.samples) {
    prometheus::ClientMetric metric;
    for (const auto& [name, value] : sample.labels) metric.label.push_back({name, value});
    metric.counter.value = metric.gauge.value = sample.value;
    if (sample.histogram) metric.histogram = Convert(*sample.histogram);
    out.metric.push_back(std::move(metric));
  }
  return out;
}

// Whether somebody accepts at "host:port".
bool Connects(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.starts_with('[')) host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) return false;
  const UniqueFd fd(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const bool connected = ::connect(fd.get(), found->ai_addr, found->ai_addrlen) == 0;
  ::freeaddrinfo(found);
  return connected;
}

class Source final : public prometheus::Collectable {
 public:
  explicit Source(Metrics& metrics) : metrics_(metrics) {}
  std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> families;
    for (const MetricFamily& family : metrics_.Collect()) families.push_back(Convert(family));
    return families;
  }

 private:
  Metrics& metrics_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const Options& options,
                                                                    Metrics& metrics) {
  RETURN_IF_ERROR(CheckRange("metrics port", options.port, 0, 65535));
  const std::string host = options.host.find(':') == std::string::npos
                               ? options.host
                               : absl::StrCat("[", options.host, "]");
  std::unique_ptr<MetricsServer> server(new MetricsServer);
  server->source_ = std::make_shared<Source>(metrics);
  try {
    server->exposer_ = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", absl::StrCat(host, ":", options.port),
                                 "num_threads", "2", "request_timeout_ms", "5000"});
    const std::vector<int> ports = server->exposer_->GetListeningPorts();
    if (ports.empty()) throw std::exception();
    server->address_ = absl::StrCat(host, ":", ports[0]);
    server->exposer_->RegisterCollectable(server->source_);
  } catch (const std::exception&) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen for metrics on ", host, ":", options.port, "; is it taken?"));
  }
  return server;
}

// The exposer's accepting thread looks only every two seconds whether it is to end, unless somebody
// connects.
MetricsServer::~MetricsServer() {
  if (exposer_ == nullptr) return;
  const std::jthread knocking([this](const std::stop_token& stop) {
    while (!stop.stop_requested() && Connects(address_)) continue;
  });
  exposer_.reset();
}

}  // namespace penstock::rpc
