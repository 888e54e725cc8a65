// SPDX-License-Identifier: Apache-2.0
#include "base/spans.h"

#include <algorithm>
#include <array>
#include <new>

#include "base/check.h"

namespace penstock {
namespace {

struct NameInfo {
  std::string_view name;
  std::string_view role;
};
constexpr std::array<NameInfo, kSpanNames> kNames = {{
    {"request", "gateway"},      {"tokenize", "gateway"},    {"hash", "gateway"},
    {"route", "gateway"},        {"first_token", "gateway"}, {"stream", "gateway"},
    {"queue", "coordinator"},    {"reserve", "coordinator"}, {"start", "coordinator"},
    {"store_wait", "worker"},    {"fetch", "worker"},        {"unpack", "worker"},
    {"encode", "worker"},        {"choose_codec", "worker"}, {"promote", "store"},
    {"disk_read", "store"},      {"turn", "link"},           {"connect", "prefill"},
    {"prefill_wait", "prefill"}, {"prefill", "prefill"},     {"send", "prefill"},
    {"allocate", "decode"},      {"wait", "decode"},         {"wire", "decode"},
    {"pack", "decode"},          {"ready", "decode"},        {"move", "decode"},
    {"land", "decode"},          {"first_step", "decode"},   {"decode", "decode"},
}};

// What is cut off never leaves part of a character: ids and names are ASCII, and so are our texts.
template <std::size_t N>
void Keep(std::string_view text, char (&chars)[N], std::uint8_t* size) {
  *size = static_cast<std::uint8_t>(std::min(text.size(), N));
  std::copy_n(text.data(), *size, chars);  // Not memcpy: an empty text may have no address.
}

}  // namespace

std::string_view ToString(SpanName name) { return kNames[static_cast<std::size_t>(name)].name; }
std::string_view RoleOf(SpanName name) { return kNames[static_cast<std::size_t>(name)].role; }

std::optional<SpanName> ParseSpanName(std::string_view text) {
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i].name == text) return static_cast<SpanName>(i);
  }
  return std::nullopt;
}

// A span with its texts inside. No constructor: memory that was never used stays untouched.
struct SpanRing::Slot {
  std::int64_t begin_ns;
  std::int64_t end_ns;
  std::uint64_t bytes;
  std::uint32_t attempt;
  std::uint32_t tokens;
  std::uint32_t blocks;
  std::int16_t layer;
  std::int16_t group;
  SpanName name;
  std::uint8_t request_size;
  std::uint8_t peer_size;
  std::uint8_t transport_size;
  std::uint8_t text_size;
  char transport[8];
  char request[kSpanTextBytes];
  char peer[kSpanTextBytes];
  char text[kSpanTextBytes];

  void Set(const Span& span) {
    begin_ns = Duration(span.begin.time_since_epoch()).count();
    end_ns = Duration(span.end.time_since_epoch()).count();
    bytes = span.bytes;
    attempt = span.attempt;
    tokens = span.tokens;
    blocks = span.blocks;
    layer = span.layer;
    group = span.group;
    name = span.name;
    Keep(span.request_id, request, &request_size);
    Keep(span.peer, peer, &peer_size);
    Keep(span.transport, transport, &transport_size);
    Keep(span.text, text, &text_size);
  }
  Span Get() const {
    return {.name = name,
            .request_id = {request, request_size},
            .attempt = attempt,
            .begin = MonoTime(Duration(begin_ns)),
            .end = MonoTime(Duration(end_ns)),
            .bytes = bytes,
            .tokens = tokens,
            .blocks = blocks,
            .layer = layer,
            .group = group,
            .peer = {peer, peer_size},
            .transport = {transport, transport_size},
            .text = {text, text_size}};
  }
};

void SpanRing::SlotsDeleter::operator()(Slot* slots) const { ::operator delete(slots); }

SpanRing::SpanRing(std::size_t spans_max) : spans_max_(spans_max) {
  static_assert(sizeof(Slot) <= 256);
  CHECK(spans_max > 0);
  slots_.reset(static_cast<Slot*>(::operator new(spans_max * sizeof(Slot))));
}

void SpanRing::Record(const Span& span) {
  const std::lock_guard lock(mutex_);
  slots_[recorded_ % spans_max_].Set(span);
  ++recorded_;
}

std::size_t SpanRing::Copy(std::uint64_t* cursor, std::span<Slot> slots) const {
  const std::lock_guard lock(mutex_);
  *cursor = std::max(*cursor, recorded_ > spans_max_ ? recorded_ - spans_max_ : 0);
  std::size_t count = 0;
  while (count < slots.size() && *cursor + count < recorded_) {
    slots[count] = slots_[(*cursor + count) % spans_max_];
    ++count;
  }
  return count;
}

std::uint64_t SpanRing::Read(
    std::uint64_t cursor, std::size_t most,
    const std::function<void(std::uint64_t number, const Span& span)>& visit) const {
  std::array<Slot, 8> slots;  // 2 KiB at a time under the lock.
  for (std::size_t left = most; left > 0;) {
    const std::size_t count = Copy(&cursor, std::span(slots).first(std::min(left, slots.size())));
    if (count == 0) break;
    for (std::size_t i = 0; i < count; ++i) visit(cursor + i, slots[i].Get());
    cursor += count;
    left -= count;
  }
  return cursor;
}

std::uint64_t SpanRing::recorded() const {
  const std::lock_guard lock(mutex_);
  return recorded_;
}

std::uint64_t SpanRing::forgotten() const {
  const std::lock_guard lock(mutex_);
  return recorded_ > spans_max_ ? recorded_ - spans_max_ : 0;
}

bool IsOfRequest(std::string_view request_id, std::string_view wanted) {
  if (!request_id.starts_with(wanted)) return false;
  const std::string_view rest = request_id.substr(wanted.size());
  if (rest.empty()) return true;
  return rest.size() > 1 && rest[0] == '.' &&
         rest.find_first_not_of("0123456789", 1) == std::string_view::npos;
}

}  // namespace penstock
