// SPDX-License-Identifier: Apache-2.0
// Frames of any origin. The first byte chooses: the input as a frame; the same with the header's
// checksum made right, so that fields are reached; or a layer's payload for one of the codecs, with
// plane lengths of the input's choice. What is accepted is written again as the same bytes, and no
// payload makes a decoder leave its slab.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"
#include "kernels/crc32c.h"
#include "kvstore/codecs/codec.h"

namespace penstock::kvstore {
namespace {

using Bytes = std::vector<std::byte>;

void CheckHeader(std::span<const std::byte> bytes) {
  const auto header = ParseFrameHeader(bytes, {});
  if (!header.ok()) return;
  const auto header_bytes = FrameHeaderBytesOf(bytes);
  CHECK(header_bytes.ok());
  if (*header_bytes != FrameHeaderBytes(header->shape.cache_layers, header->planes, false)) return;
  if (bytes[10] != std::byte{0}) return;
  Bytes again(*header_bytes);
  WriteFrameHeader(*header, {}, again);
  CHECK(std::equal(again.begin(), again.end(), bytes.begin()));
  (void)ParseFrame(bytes, {});
}

void MendChecksum(Bytes& bytes) {
  const auto header_bytes = FrameHeaderBytesOf(bytes);
  if (!header_bytes.ok() || *header_bytes > bytes.size()) return;
  const std::uint32_t crc = kernels::Crc32c(0, bytes.data(), *header_bytes - 4);
  std::memcpy(bytes.data() + *header_bytes - 4, &crc, 4);
}

// codec, dtype, then 16 bits per plane that say how far its length is from what is left.
void DecodePayload(std::span<const std::byte> in) {
  if (in.size() < 2) return;
  const Codec& codec =
      CodecOf(AllCodecs()[std::to_integer<std::size_t>(in[0]) % AllCodecs().size()]);
  const BlockShape shape = {.dtype = static_cast<KvDtype>(std::to_integer<int>(in[1]) % 4),
                            .block_tokens = 4,
                            .cache_layers = 1,
                            .kv_heads = 2,
                            .k_dim = 32,
                            .v_dim = 24};
  // A header that says otherwise is refused.
  if (!CheckTakes(codec.id(), shape.dtype).ok()) return;
  in = in.subspan(2);
  const auto planes = static_cast<std::size_t>(codec.planes());
  if (in.size() < 2 * planes) return;
  std::vector<std::uint32_t> lengths(planes);
  std::size_t left = in.size() - 2 * planes;
  for (std::size_t p = 0; p < planes; ++p) {
    std::uint16_t bytes;
    std::memcpy(&bytes, in.data() + 2 * p, 2);
    lengths[p] = static_cast<std::uint32_t>(std::min<std::size_t>(bytes, left));
    left -= lengths[p];
  }
  // Of exactly the size, so that a step too far is seen.
  const Bytes payload(in.begin() + static_cast<std::ptrdiff_t>(2 * planes),
                      in.end() - static_cast<std::ptrdiff_t>(left));
  Bytes layer(shape.layer_bytes());
  CodecScratch scratch;
  (void)codec.DecodeLayer(shape, lengths, payload.data(), scratch, layer.data());
}

}  // namespace
}  // namespace penstock::kvstore

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::kvstore;
  if (size == 0) return 0;
  const std::span<const std::byte> in(reinterpret_cast<const std::byte*>(data + 1), size - 1);
  if (data[0] % 3 == 2) {
    DecodePayload(in);
    return 0;
  }
  Bytes bytes(in.begin(), in.end());
  if (data[0] % 3 == 1) MendChecksum(bytes);
  CheckHeader(bytes);
  return 0;
}
