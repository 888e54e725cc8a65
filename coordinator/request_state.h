// SPDX-License-Identifier: Apache-2.0
// The states of a request and all its transitions: one table, in README.md and here, walked by the
// test. What is not in the table changes nothing: a repeated, late or impossible message.
//
// Events of workers are those of the attempt that is live; those of an earlier one never get here.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace penstock::coordinator {

enum class RequestState : std::uint8_t {
  kQueued,        // Admitted; waits for a plan. No worker knows it.
  kReserving,     // The decode worker was asked for memory.
  kStarting,      // It granted; the prefill worker was asked to begin.
  kPrefilling,    // Both have accepted; KV is computed and sent.
  kTransferring,  // Computed; the last blocks are on their way.
  kDecoding,      // The decode worker runs it; the prefill worker has nothing of it any more.
  kLost,          // The decode worker was lost; the gateway was asked for prompt + emitted tokens.
  kEnded,
};
inline constexpr std::size_t kRequestStates = 8;

enum class RequestEvent : std::uint8_t {
  kPlanned,
  kGranted,         // By the decode worker.
  kAccepted,        // By the prefill worker.
  kComputed,        // By the prefill worker.
  kAdopted,         // By the decode worker: the sequence runs.
  kFinished,        // By the decode worker: the answer is complete.
  kPrefillRefused,  // Or gave it up: it holds nothing any more.
  kDecodeRefused,   // Likewise.
  kTransferFailed,  // Said either of them.
  kPrefillLost,     // Died, left, or must move its requests.
  kDecodeLost,
  kTimedOut,  // The state's own deadline.
  kExpired,   // The request's.
  kGivenUp,   // No attempt is left, or no worker.
  kResumed,   // The gateway asks for another attempt, with the prompt as it is now.
  kCancelled,
};
inline constexpr std::size_t kRequestEvents = 16;

// What happens beside the change of state. "Release": whoever was asked is told to let go, and what
// was booked on it is taken off.
enum class RequestEffect : std::uint8_t {
  kNone,
  kReserve,     // Books both workers, and asks the decode worker.
  kStart,       // Tells the gateway of the plan, and asks the prefill worker, with the grant.
  kWatch,       // Until the hold of this attempt ends.
  kDecode,      // The prefill worker is let go.
  kRetry,       // Release both, never again the one at fault; it waits in its old place.
  kAskGateway,  // Release both, and ask for the tokens emitted so far.
  kRequeue,     // Release both; the new prompt waits in the old place.
  kEnd,         // Release both, and tell the gateway.
};

struct RequestTransition {
  RequestState from;
  RequestEvent event;
  RequestState to;
  RequestEffect effect;
};

// By state, then event.
std::span<const RequestTransition> RequestTransitions();
// nullptr: nothing changes.
const RequestTransition* FindTransition(RequestState from, RequestEvent event);

std::string_view ToString(RequestState state);  // "queued", ...
std::string_view ToString(RequestEvent event);
std::string_view ToString(RequestEffect effect);

// Some worker may hold something of the request.
inline bool HasWorkers(RequestState state) {
  return state >= RequestState::kReserving && state <= RequestState::kDecoding;
}

}  // namespace penstock::coordinator
