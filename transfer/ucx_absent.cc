// SPDX-License-Identifier: Apache-2.0
// Takes the place of the other ucx_*.cc where there is no UCX to build with.
#include "transfer/ucx_transport.h"

namespace penstock::transfer {

bool UcxTransport::Built() { return false; }

absl::StatusOr<std::unique_ptr<UcxTransport>> UcxTransport::Make(EpollLoop&, const std::string&) {
  return absl::UnimplementedError(
      "kind ucx: this program was built without UCX (Debian: libucx-dev); leave it out");
}

}  // namespace penstock::transfer
