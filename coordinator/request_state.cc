// SPDX-License-Identifier: Apache-2.0
#include "coordinator/request_state.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

namespace penstock::coordinator {
namespace {

using S = RequestState;
using E = RequestEvent;
using F = RequestEffect;

// clang-format off
constexpr RequestTransition kTransitions[] = {
    {S::kQueued, E::kPlanned, S::kReserving, F::kReserve},
    {S::kQueued, E::kTimedOut, S::kEnded, F::kEnd},
    {S::kQueued, E::kExpired, S::kEnded, F::kEnd},
    {S::kQueued, E::kGivenUp, S::kEnded, F::kEnd},
    {S::kQueued, E::kResumed, S::kQueued, F::kRequeue},
    {S::kQueued, E::kCancelled, S::kEnded, F::kEnd},
    {S::kReserving, E::kGranted, S::kStarting, F::kStart},
    {S::kReserving, E::kDecodeRefused, S::kQueued, F::kRetry},
    {S::kReserving, E::kPrefillLost, S::kQueued, F::kRetry},
    {S::kReserving, E::kDecodeLost, S::kQueued, F::kRetry},
    {S::kReserving, E::kTimedOut, S::kQueued, F::kRetry},
    {S::kReserving, E::kExpired, S::kEnded, F::kEnd},
    {S::kReserving, E::kResumed, S::kQueued, F::kRequeue},
    {S::kReserving, E::kCancelled, S::kEnded, F::kEnd},
    {S::kStarting, E::kAccepted, S::kPrefilling, F::kWatch},
    {S::kStarting, E::kComputed, S::kTransferring, F::kWatch},
    {S::kStarting, E::kAdopted, S::kDecoding, F::kDecode},
    {S::kStarting, E::kFinished, S::kEnded, F::kEnd},
    {S::kStarting, E::kPrefillRefused, S::kQueued, F::kRetry},
    {S::kStarting, E::kDecodeRefused, S::kQueued, F::kRetry},
    {S::kStarting, E::kTransferFailed, S::kQueued, F::kRetry},
    {S::kStarting, E::kPrefillLost, S::kQueued, F::kRetry},
    {S::kStarting, E::kDecodeLost, S::kQueued, F::kRetry},
    {S::kStarting, E::kTimedOut, S::kQueued, F::kRetry},
    {S::kStarting, E::kExpired, S::kEnded, F::kEnd},
    {S::kStarting, E::kResumed, S::kQueued, F::kRequeue},
    {S::kStarting, E::kCancelled, S::kEnded, F::kEnd},
    {S::kPrefilling, E::kComputed, S::kTransferring, F::kWatch},
    {S::kPrefilling, E::kAdopted, S::kDecoding, F::kDecode},
    {S::kPrefilling, E::kFinished, S::kEnded, F::kEnd},
    {S::kPrefilling, E::kPrefillRefused, S::kQueued, F::kRetry},
    {S::kPrefilling, E::kDecodeRefused, S::kQueued, F::kRetry},
    {S::kPrefilling, E::kTransferFailed, S::kQueued, F::kRetry},
    {S::kPrefilling, E::kPrefillLost, S::kQueued, F::kRetry},
    {S::kPrefilling, E::kDecodeLost, S::kQueued, F::kRetry},
    {S::kPrefilling, E::kTimedOut, S::kQueued, F::kRetry},
    {S::kPrefilling, E::kExpired, S::kEnded, F::kEnd},
    {S::kPrefilling, E::kResumed, S::kQueued, F::kRequeue},
    {S::kPrefilling, E::kCancelled, S::kEnded, F::kEnd},
    {S::kTransferring, E::kAdopted, S::kDecoding, F::kDecode},
    {S::kTransferring, E::kFinished, S::kEnded, F::kEnd},
    {S::kTransferring, E::kPrefillRefused, S::kQueued, F::kRetry},
    {S::kTransferring, E::kDecodeRefused, S::kQueued, F::kRetry},
    {S::kTransferring, E::kTransferFailed, S::kQueued, F::kRetry},
    {S::kTransferring, E::kPrefillLost, S::kQueued, F::kRetry},
    {S::kTransferring, E::kDecodeLost, S::kQueued, F::kRetry},
    {S::kTransferring, E::kTimedOut, S::kQueued, F::kRetry},
    {S::kTransferring, E::kExpired, S::kEnded, F::kEnd},
    {S::kTransferring, E::kResumed, S::kQueued, F::kRequeue},
    {S::kTransferring, E::kCancelled, S::kEnded, F::kEnd},
    {S::kDecoding, E::kFinished, S::kEnded, F::kEnd},
    {S::kDecoding, E::kDecodeRefused, S::kLost, F::kAskGateway},
    {S::kDecoding, E::kDecodeLost, S::kLost, F::kAskGateway},
    {S::kDecoding, E::kExpired, S::kEnded, F::kEnd},
    {S::kDecoding, E::kResumed, S::kQueued, F::kRequeue},
    {S::kDecoding, E::kCancelled, S::kEnded, F::kEnd},
    {S::kLost, E::kTimedOut, S::kEnded, F::kEnd},
    {S::kLost, E::kExpired, S::kEnded, F::kEnd},
    {S::kLost, E::kGivenUp, S::kEnded, F::kEnd},
    {S::kLost, E::kResumed, S::kQueued, F::kRequeue},
    {S::kLost, E::kCancelled, S::kEnded, F::kEnd},
};
// clang-format on

}  // namespace

std::span<const RequestTransition> RequestTransitions() { return kTransitions; }

const RequestTransition* FindTransition(RequestState from, RequestEvent event) {
  const auto* const at = std::lower_bound(
      std::begin(kTransitions), std::end(kTransitions), std::pair(from, event),
      [](const RequestTransition& t, const std::pair<RequestState, RequestEvent>& key) {
        return std::pair(t.from, t.event) < key;
      });
  return at != std::end(kTransitions) && at->from == from && at->event == event ? at : nullptr;
}

std::string_view ToString(RequestState state) {
  switch (state) {
    case RequestState::kQueued:
      return "queued";
    case RequestState::kReserving:
      return "reserving";
    case RequestState::kStarting:
      return "starting";
    case RequestState::kPrefilling:
      return "prefilling";
    case RequestState::kTransferring:
      return "transferring";
    case RequestState::kDecoding:
      return "decoding";
    case RequestState::kLost:
      return "lost";
    case RequestState::kEnded:
      return "ended";
  }
  return "?";
}

std::string_view ToString(RequestEvent event) {
  switch (event) {
    case RequestEvent::kPlanned:
      return "planned";
    case RequestEvent::kGranted:
      return "granted";
    case RequestEvent::kAccepted:
      return "accepted";
    case RequestEvent::kComputed:
      return "computed";
    case RequestEvent::kAdopted:
      return "adopted";
    case RequestEvent::kFinished:
      return "finished";
    case RequestEvent::kPrefillRefused:
      return "prefill refused";
    case RequestEvent::kDecodeRefused:
      return "decode refused";
    case RequestEvent::kTransferFailed:
      return "transfer failed";
    case RequestEvent::kPrefillLost:
      return "prefill lost";
    case RequestEvent::kDecodeLost:
      return "decode lost";
    case RequestEvent::kTimedOut:
      return "timed out";
    case RequestEvent::kExpired:
      return "expired";
    case RequestEvent::kGivenUp:
      return "given up";
    case RequestEvent::kResumed:
      return "resumed";
    case RequestEvent::kCancelled:
      return "cancelled";
  }
  return "?";
}

std::string_view ToString(RequestEffect effect) {
  switch (effect) {
    case RequestEffect::kNone:
      return "none";
    case RequestEffect::kReserve:
      return "reserve";
    case RequestEffect::kStart:
      return "start";
    case RequestEffect::kWatch:
      return "watch";
    case RequestEffect::kDecode:
      return "decode";
    case RequestEffect::kRetry:
      return "retry";
    case RequestEffect::kAskGateway:
      return "ask gateway";
    case RequestEffect::kRequeue:
      return "requeue";
    case RequestEffect::kEnd:
      return "end";
  }
  return "?";
}

}  // namespace penstock::coordinator
