// SPDX-License-Identifier: Apache-2.0
#include "rpc/open_calls.h"

#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpc/support/time.h"

namespace penstock::rpc {

struct OpenCalls::State {
  absl::Mutex mutex;
  std::set<grpc::ClientContext*> waiting ABSL_GUARDED_BY(mutex);  // Without an answer.
  std::size_t held ABSL_GUARDED_BY(mutex) = 0;                    // That gRPC has not let go of.
  bool over ABSL_GUARDED_BY(mutex) = false;

  bool Free() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return held == 0; }
};

OpenCalls::OpenCalls(Loop& loop) : loop_(loop), state_(std::make_shared<State>()) {}

OpenCalls::~OpenCalls() {
  const absl::MutexLock lock(&state_->mutex);
  state_->over = true;
  for (grpc::ClientContext* const context : state_->waiting) context->TryCancel();
  state_->mutex.Await(absl::Condition(state_.get(), &State::Free));
}

std::size_t OpenCalls::count() const {
  const absl::MutexLock lock(&state_->mutex);
  return state_->waiting.size();
}

void OpenCalls::Add(grpc::ClientContext* context, Duration within) {
  context->set_deadline(gpr_time_from_nanos(within.count(), GPR_TIMESPAN));
  const absl::MutexLock lock(&state_->mutex);
  state_->waiting.insert(context);
  ++state_->held;
}

bool OpenCalls::Remove(State& state, grpc::ClientContext* context) {
  const absl::MutexLock lock(&state.mutex);
  return state.waiting.erase(context) != 0 && !state.over;
}

void OpenCalls::LetGo(State& state) {
  const absl::MutexLock lock(&state.mutex);
  --state.held;
}

}  // namespace penstock::rpc
