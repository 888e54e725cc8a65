// SPDX-License-Identifier: Apache-2.0
#include "device/cudnn_standin.h"

#include <cudnn_graph.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "device/cuda_standin.h"
#include "device/cuda_standin_graph.h"
#include "device/cudnn_standin_descriptor.h"

struct cudnnContext {
  cudaStream_t stream = nullptr;
};

namespace penstock::cudnn_standin {
namespace {

struct State {
  std::mutex mutex;  // Guards all of it.
  Faults faults;
  Counts counts;
  std::set<const void*> live;  // Handles and descriptors.
  std::string last_error;
};
State& The() {
  static State state;
  return state;
}
Faults FaultsNow() {
  const std::lock_guard lock(The().mutex);
  return The().faults;
}
cudnnStatus_t Misuse(cudnnStatus_t status, const std::string& why) {
  const std::lock_guard lock(The().mutex);
  ++The().counts.misuses;
  The().counts.last_misuse = why;
  The().last_error = why;
  return status;
}
void Count(std::int64_t Counts::*what, std::int64_t change) {
  const std::lock_guard lock(The().mutex);
  The().counts.*what += change;
}
void Enter(const void* made, std::int64_t Counts::*what) {
  const std::lock_guard lock(The().mutex);
  The().live.insert(made);
  ++(The().counts.*what);
}
bool Leave(const void* gone, std::int64_t Counts::*what) {
  const std::lock_guard lock(The().mutex);
  if (The().live.erase(gone) == 0) return false;
  --(The().counts.*what);
  return true;
}
bool IsLive(const void* pointer) {
  const std::lock_guard lock(The().mutex);
  return The().live.contains(pointer);
}

// What is named must be there and be finalized.
std::string WhyNotNamed(std::int64_t count, const void* values) {
  for (std::int64_t i = 0; i < count; ++i) {
    const void* const named = static_cast<void* const*>(values)[i];
    if (!IsLive(named)) return "names a descriptor that is not there";
    if (!static_cast<const Descriptor*>(named)->finished) return "names what is not finalized";
  }
  return {};
}

// The addresses of a pack, those of host values in `kept`.
std::string AddressesOf(const Program& program, const Descriptor& pack, Addresses* at,
                        std::map<std::int64_t, float>* kept) {
  const auto uids = pack.All<std::int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto data = pack.All<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  for (std::size_t i = 0; i < uids.size(); ++i) (*at)[uids[i]] = data[i];
  for (const Tensor& t : program.Given()) {
    if (!at->contains(t.uid)) return "no address for tensor " + std::to_string(t.uid);
    void*& address = at->at(t.uid);
    if (t.by_value) {
      std::memcpy(&(*kept)[t.uid], address, sizeof(float));
    } else if (!cuda_standin::IsDevice(address, 1)) {
      return "tensor " + std::to_string(t.uid) + " is not of the device";
    }
  }
  return {};
}

cudnnStatus_t Execute(cudnnHandle_t handle, const Descriptor& plan, const Descriptor& pack) {
  const Faults faults = FaultsNow();
  if (faults.execute_error != 0) return static_cast<cudnnStatus_t>(faults.execute_error);
  if (cuda_standin::RefuseCaptured() != 0) return CUDNN_STATUS_EXECUTION_FAILED_CUDART;
  Addresses at;
  std::map<std::int64_t, float> kept;
  if (const std::string why = AddressesOf(*plan.program, pack, &at, &kept); !why.empty()) {
    return Misuse(CUDNN_STATUS_BAD_PARAM, why);
  }
  const auto bytes = static_cast<std::size_t>(faults.workspace_bytes);
  void* const workspace = pack.One<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
  if (bytes != 0 && !cuda_standin::IsDevice(workspace, bytes)) {
    return Misuse(CUDNN_STATUS_BAD_PARAM, "the workspace is not of the device");
  }
  const float factor = faults.wrong ? 1.0625F : 1;
  const float first = faults.nan ? std::numeric_limits<float>::quiet_NaN() : factor;
  cuda_standin::Enqueue(
      handle->stream, [=, program = plan.program, at = std::move(at), kept = std::move(kept)] {
        Addresses own = at;
        std::map<std::int64_t, float> values = kept;
        for (auto& [uid, value] : values) own[uid] = &value;
        const cuda_standin::Work work;
        if (bytes != 0) std::memset(workspace, 0xDB, bytes);
        if (const std::string why = program->Run(own, factor, first); !why.empty()) {
          (void)Misuse(CUDNN_STATUS_EXECUTION_FAILED, why);
        }
        Count(&Counts::runs, 1);
      });
  return CUDNN_STATUS_SUCCESS;
}

}  // namespace

void Set(const Faults& faults) {
  const std::lock_guard lock(The().mutex);
  The().faults = faults;
}
Counts Now() {
  const std::lock_guard lock(The().mutex);
  return The().counts;
}

}  // namespace penstock::cudnn_standin

using penstock::cudnn_standin::Count;
using penstock::cudnn_standin::Counts;
using penstock::cudnn_standin::Descriptor;
using penstock::cudnn_standin::FaultsNow;
using penstock::cudnn_standin::IsLive;
using penstock::cudnn_standin::Misuse;
using penstock::cudnn_standin::The;

extern "C" {

std::size_t cudnnGetVersion() { return 91900; }
const char* cudnnGetErrorString(cudnnStatus_t status) {
  switch (status) {
    case CUDNN_STATUS_SUCCESS:
      return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_BAD_PARAM:
      return "CUDNN_STATUS_BAD_PARAM";
    case CUDNN_STATUS_NOT_SUPPORTED:
      return "CUDNN_STATUS_NOT_SUPPORTED";
    default:
      return "CUDNN_STATUS of another kind";
  }
}
void cudnnGetLastErrorString(char* message, std::size_t max_size) {
  const std::lock_guard lock(The().mutex);
  if (max_size != 0) std::snprintf(message, max_size, "%s", The().last_error.c_str());
  The().last_error.clear();
}

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  *handle = new cudnnContext;
  penstock::cudnn_standin::Enter(*handle, &Counts::handles);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  if (!penstock::cudnn_standin::Leave(handle, &Counts::handles)) {
    return Misuse(CUDNN_STATUS_BAD_PARAM, "no such handle");
  }
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  if (!IsLive(handle)) return Misuse(CUDNN_STATUS_BAD_PARAM, "no such handle");
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t* descriptor) {
  *descriptor = new Descriptor{.type = type, .values = {}, .program = {}};
  penstock::cudnn_standin::Enter(*descriptor, &Counts::descriptors);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  if (!penstock::cudnn_standin::Leave(descriptor, &Counts::descriptors)) {
    return Misuse(CUDNN_STATUS_BAD_PARAM, "no such descriptor");
  }
  delete static_cast<Descriptor*>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t count,
                                       const void* values) {
  if (!IsLive(descriptor)) return Misuse(CUDNN_STATUS_BAD_PARAM, "no such descriptor");
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    const std::string why = penstock::cudnn_standin::WhyNotNamed(count, values);
    if (!why.empty()) return Misuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, why);
  }
  std::string why;
  const cudnnStatus_t status = penstock::cudnn_standin::SetAttribute(
      *static_cast<Descriptor*>(descriptor), name, type, count, values, &why);
  return status == CUDNN_STATUS_SUCCESS ? status : Misuse(status, why);
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  if (!IsLive(descriptor)) return Misuse(CUDNN_STATUS_BAD_PARAM, "no such descriptor");
  auto& finished = *static_cast<Descriptor*>(descriptor);
  std::string why;
  const cudnnStatus_t status = penstock::cudnn_standin::Finish(finished, &why);
  if (status != CUDNN_STATUS_SUCCESS) return Misuse(status, why);
  if (finished.type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
    if (const int error = FaultsNow().plan_error; error != 0) {
      return static_cast<cudnnStatus_t>(error);
    }
    Count(&Counts::plans, 1);
  }
  return status;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, std::int64_t count,
                                       std::int64_t* found, void* values) {
  if (!IsLive(descriptor) || !static_cast<Descriptor*>(descriptor)->finished || count < 1) {
    return Misuse(CUDNN_STATUS_BAD_PARAM, "nothing to ask");
  }
  const auto& asked = *static_cast<const Descriptor*>(descriptor);
  if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS && type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    *found = FaultsNow().unsupported ? 0 : 1;
    if (*found == 0) return CUDNN_STATUS_SUCCESS;
    auto& config = *static_cast<Descriptor*>(static_cast<void**>(values)[0]);
    config.program = asked.program;
    config.finished = true;
    return CUDNN_STATUS_SUCCESS;
  }
  if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && type == CUDNN_TYPE_INT64) {
    *found = 1;
    *static_cast<std::int64_t*>(values) = FaultsNow().workspace_bytes;
    return CUDNN_STATUS_SUCCESS;
  }
  return Misuse(CUDNN_STATUS_NOT_SUPPORTED, "not asked here");
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  if (!IsLive(handle) || !IsLive(plan) || !IsLive(pack)) {
    return Misuse(CUDNN_STATUS_BAD_PARAM, "nothing to execute");
  }
  return penstock::cudnn_standin::Execute(handle, *static_cast<const Descriptor*>(plan),
                                          *static_cast<const Descriptor*>(pack));
}

}  // extern "C"
