// SPDX-License-Identifier: Apache-2.0
// What UCX is told to use, and how its errors read.
#pragma once

#include <ucp/api/ucp.h>

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace penstock::transfer {

struct UcxDevices {
  std::string transports;  // As UCX's TLS: "tcp" or "ib,tcp".
  std::string names;       // As its NET_DEVICES: "lo", "eth0,mlx5_0:1"; "all".
  // As its RNDV_THRESH, from how many bytes on a payload is asked for by who receives it. Over TCP
  // alone never: what comes is checked and copied to its place straight from the socket's buffer.
  std::string rendezvous = "inf";
  std::string Describe() const;  // "tcp/lo".
};
// The interface that has the numeric address `host`, all of them for 0.0.0.0 and ::, and all RDMA
// devices unless it is loopback. UNAVAILABLE when no interface has it.
absl::StatusOr<UcxDevices> ChooseUcxDevices(const std::string& host);

// To be released by ucp_config_release. What Penstock relies on is set, whatever environment
// variables and files of UCX say.
absl::StatusOr<ucp_config_t*> MakeUcxConfig(const UcxDevices& devices);

// UNAVAILABLE: "WHAT: Connection reset by remote peer".
absl::Status FromUcs(ucs_status_t status, std::string_view what);

}  // namespace penstock::transfer
