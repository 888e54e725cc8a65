// SPDX-License-Identifier: Apache-2.0
// A trace for tests: one disaggregated request whose figures are easy to check by hand.
#pragma once

#include "cli/trace_data.h"

namespace penstock::cli {

// Process 0 is the coordinator with its gateway, 1 prefill-0, 2 decode-0. Times in microseconds:
//   prefill of two chunks   100..200, 200..300    (ends at 300)
//   layer 0, chunk 0        told 150, read 160..170, 1000 bytes
//   layer 1, chunk 0        told 200, read 200..220, 1000 bytes
//   layer 0, chunk 1        told 250, read 250..270, 1000 bytes
//   layer 1, chunk 1        told 300, read 305..320, 500 bytes
// So KV is under way for 20 + 20 + 20 + 20 of which the first 60 are hidden.
inline ClusterTrace ExampleTrace() {
  ClusterTrace trace;
  trace.unix_minus_mono_ns = 1'700'000'000'000'000'000;
  trace.processes = {
      {.name = "coordinator", .role = "coordinator", .address = "127.0.0.1:1", .pid = 11},
      {.name = "prefill-0", .role = "prefill", .address = "127.0.0.1:2", .pid = 12},
      {.name = "decode-0",
       .role = "decode",
       .address = "127.0.0.1:3",
       .pid = 13,
       .clock = {.offset_ns = 5000, .error_ns = 700}}};
  std::uint64_t number = 0;
  const auto add = [&](SpanName name, std::size_t process, std::uint32_t attempt,
                       std::int64_t begin_us, std::int64_t end_us) -> TraceSpan& {
    return trace.spans.emplace_back(TraceSpan{.name = name,
                                              .process = process,
                                              .number = number++,
                                              .request_id = "r-1",
                                              .attempt = attempt,
                                              .begin_ns = begin_us * 1000,
                                              .end_ns = end_us * 1000});
  };
  add(SpanName::kRequest, 0, 0, 0, 1000).tokens = 65;
  add(SpanName::kTokenize, 0, 0, 1, 11).bytes = 300;
  add(SpanName::kHash, 0, 0, 11, 12).blocks = 2;
  add(SpanName::kRoute, 0, 1, 20, 90).peer = "decode-0";
  add(SpanName::kQueue, 0, 1, 25, 30);
  add(SpanName::kReserve, 0, 1, 30, 80).peer = "decode-0";
  add(SpanName::kStart, 0, 1, 80, 95).peer = "prefill-0";
  add(SpanName::kFirstToken, 0, 1, 90, 400);
  add(SpanName::kStream, 0, 1, 400, 990).tokens = 10;
  add(SpanName::kAllocate, 2, 1, 40, 60);
  add(SpanName::kConnect, 1, 1, 95, 97).peer = "decode-0";
  add(SpanName::kPrefillWait, 1, 1, 97, 100);
  add(SpanName::kPrefill, 1, 1, 100, 200).tokens = 32;
  add(SpanName::kPrefill, 1, 1, 200, 300).tokens = 32;
  const auto layer = [&](std::int32_t which, std::int64_t computed_us, std::int64_t told_us,
                         std::int64_t begun_us, std::int64_t verified_us, std::uint64_t bytes) {
    for (const SpanName name : {SpanName::kSend, SpanName::kWait, SpanName::kWire}) {
      const bool send = name == SpanName::kSend;
      TraceSpan& span = add(name, send ? 1 : 2, 1,
                            send                      ? computed_us
                            : name == SpanName::kWait ? told_us
                                                      : begun_us,
                            send                      ? told_us
                            : name == SpanName::kWait ? begun_us
                                                      : verified_us);
      span.layer = which;
      span.group = 0;
      span.blocks = 1;
      span.bytes = bytes;
      span.peer = send ? "decode-0" : "prefill-0";
      span.transport = "shm";
    }
  };
  layer(0, 145, 150, 160, 170, 1000);
  layer(1, 195, 200, 200, 220, 1000);
  layer(0, 245, 250, 250, 270, 1000);
  layer(1, 295, 300, 305, 320, 500);
  add(SpanName::kFirstStep, 2, 1, 320, 390);
  add(SpanName::kDecode, 2, 1, 390, 980).tokens = 10;
  SortSpans(trace);
  return trace;
}

}  // namespace penstock::cli
