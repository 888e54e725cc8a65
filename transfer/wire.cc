// SPDX-License-Identifier: Apache-2.0
#include "transfer/wire.h"

namespace penstock::transfer {

void WireWriter::Bytes(std::span<const std::byte> bytes) {
  out_.insert(out_.end(), bytes.begin(), bytes.end());
}

}  // namespace penstock::transfer
