// SPDX-License-Identifier: Apache-2.0
// How what a step puts into a stream gets there: kernels of the plug-in's table, and calls of
// libraries, are started, or, while a step is taken down (kernels/cuda_graphs.h), only noted.
//
// Of the stream's thread; both outlive it.
#pragma once

#include <string>

#include "absl/functional/function_ref.h"
#include "kernels/cuda_graphs.h"
#include "kernels/cuda_kernels.h"

namespace penstock::kernels {

class CudaLaunches {
 public:
  CudaLaunches(const CudaKernels& kernels, CudaStream& stream)
      : kernels_(kernels), stream_(stream) {}

  // Starts a kernel of the table, or takes it down.
  template <typename Kernel, typename... Arguments>
  void Start(const char* what, Kernel kernel, const Arguments&... arguments) {
    if (taking_down_) {
      key_.Add(what, arguments...);
    } else {
      stream_.Expect((kernels_.*kernel)(arguments..., stream_.handle()), what);
    }
  }
  // Likewise `call`, which puts something into the stream that is known by those arguments.
  template <typename... Arguments>
  void Call(const char* what, absl::FunctionRef<void()> call, const Arguments&... known_by) {
    if (taking_down_) {
      key_.Add(what, known_by...);
    } else {
      call();
    }
  }

  bool taking_down() const { return taking_down_; }
  // From here on the key is of what comes, and nothing is started, until EndTakingDown.
  void TakeDown() {
    key_.Clear();
    taking_down_ = true;
  }
  void EndTakingDown() { taking_down_ = false; }
  const std::string& key() const { return key_.bytes(); }

 private:
  const CudaKernels& kernels_;
  CudaStream& stream_;
  StepKey key_;
  bool taking_down_ = false;
};

}  // namespace penstock::kernels
