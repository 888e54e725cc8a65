// SPDX-License-Identifier: Apache-2.0
// Unary calls of one client that wait for their answers, which come on a loop.
//
// Owned by whoever asks. Each call is given up on the loop, never on a thread of gRPC's; see
// MakeChannel.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "base/event_loop.h"
#include "base/time.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/status.h"
#include "rpc/convert.h"

namespace penstock::rpc {

class OpenCalls {
 public:
  // `loop` outlives it. Used on the loop's thread.
  explicit OpenCalls(Loop& loop);
  // On the loop's thread, or with no call open. Cancels, and waits until gRPC has let go of them
  // all; none is answered any more.
  ~OpenCalls();
  OpenCalls(const OpenCalls&) = delete;
  OpenCalls& operator=(const OpenCalls&) = delete;

  std::size_t count() const;  // Those that wait for their answer.

  // Calls `begin(context, request, response, on_done)`, which hands all of it to a method of an
  // async stub. `done` is called once, on the loop and never from inside, with the answer or with
  // what the call failed with: DEADLINE_EXCEEDED after `within`.
  template <typename Response, typename Request, typename Begin>
  void Start(Request request, Duration within, const Begin& begin,
             std::function<void(absl::StatusOr<Response>)> done) {
    struct Call {
      grpc::ClientContext context;
      Request request;
      Response response;
    };
    auto call = std::make_shared<Call>();  // Not const: what is captured is moved on.
    call->request = std::move(request);
    Add(&call->context, within);
    // gRPC keeps the function for a moment longer than it needs it: so it is emptied.
    begin(&call->context, &call->request, &call->response,
          [&loop = loop_, state = state_, call,
           done = std::move(done)](const grpc::Status& status) mutable {
            loop.Post(
                [state, call = std::move(call), done = std::move(done), status = FromGrpc(status)] {
                  if (!Remove(*state, &call->context)) return;
                  if (!status.ok()) return done(status);
                  done(std::move(call->response));
                });
            LetGo(*state);
          });
  }

 private:
  struct State;

  void Add(grpc::ClientContext* context, Duration within);
  // On the loop; false: nobody wants the answer any more.
  static bool Remove(State& state, grpc::ClientContext* context);
  static void LetGo(State& state);  // By gRPC.

  Loop& loop_;
  const std::shared_ptr<State> state_;  // Outlives this by a moment.
};

}  // namespace penstock::rpc
