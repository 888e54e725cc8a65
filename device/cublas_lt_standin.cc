// SPDX-License-Identifier: Apache-2.0
#include "device/cublas_lt_standin.h"

#include <cublasLt.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string_view>
#include <type_traits>

#include "device/cublas_lt_standin_product.h"
#include "device/cuda_standin.h"
#include "device/cuda_standin_graph.h"
#include "device/standin_words.h"

// What cublasLtHandle_t points to.
struct cublasLtContext {
  int device = 0;  // The thread's of when it was made.
};

namespace penstock::cublas_lt_standin {
namespace {

void SetFault(Faults& faults, std::string_view word) {
  const std::size_t equals = word.find('=');
  const std::string_view name = word.substr(0, equals);
  if (name == "absent") {
    faults.absent = true;
  } else if (name == "version" && equals != std::string_view::npos) {
    faults.version = std::atoi(word.data() + equals + 1);
  } else if (name == "no_heuristic") {
    faults.no_heuristic = true;
  } else if (name == "execution_failed") {
    faults.execution_failed = true;
  } else if (name == "refused" && equals != std::string_view::npos) {
    faults.refused = std::atoi(word.data() + equals + 1);
  } else {  // A test that plants it would test nothing.
    std::fprintf(stderr, "PENSTOCK_CUBLASLT_FAULTS: there is no fault '%.*s'\n",
                 static_cast<int>(name.size()), name.data());
    std::abort();
  }
}

Faults FaultsOfEnvironment() {
  Faults faults;
  ForEachWord("PENSTOCK_CUBLASLT_FAULTS", [&](std::string_view word) { SetFault(faults, word); });
  return faults;
}

struct State {
  std::mutex mutex;
  Faults faults = FaultsOfEnvironment();
  Counts counts;
};
State& The() {
  static State state;
  return state;
}
void Count(std::int64_t Counts::*which, std::int64_t by) {
  const std::lock_guard lock(The().mutex);
  The().counts.*which += by;
}
Faults FaultsNow() {
  const std::lock_guard lock(The().mutex);
  return The().faults;
}

cublasStatus_t Refuse(const std::string& why) {
  if (why.empty()) return CUBLAS_STATUS_SUCCESS;
  const std::lock_guard lock(The().mutex);
  The().counts.last_fault = why;
  return CUBLAS_STATUS_INVALID_VALUE;
}

// A struct of ours in one of cuBLASLt's opaque ones.
template <typename Own, typename Opaque>
Own Read(const Opaque* from) {
  static_assert(sizeof(Own) <= sizeof(Opaque) && std::is_trivially_copyable_v<Own>);
  Own own;
  std::memcpy(static_cast<void*>(&own), from, sizeof(own));
  return own;
}
template <typename Own, typename Opaque>
void Write(const Own& own, Opaque* to) {
  static_assert(sizeof(Own) <= sizeof(Opaque) && std::is_trivially_copyable_v<Own>);
  std::memcpy(static_cast<void*>(to), &own, sizeof(own));
}
template <typename Opaque, typename Own>
cublasStatus_t Make(Opaque** made, const Own& own) {
  if (made == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *made = new Opaque{};
  Write(own, *made);
  Count(&Counts::objects, 1);
  return CUBLAS_STATUS_SUCCESS;
}
template <typename Opaque>
cublasStatus_t Destroy(Opaque* object) {
  delete object;
  if (object != nullptr) Count(&Counts::objects, -1);
  return CUBLAS_STATUS_SUCCESS;
}

struct Preference {
  std::uint64_t workspace_bytes = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256};  // Of A, B, C and D.
};

template <typename T>
cublasStatus_t Take(const void* value, std::size_t bytes, T& to) {
  if (value == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

bool IsOneOf(cudaDataType_t type) {
  return type == CUDA_R_16F || type == CUDA_R_16BF || type == CUDA_R_32F;
}

// What products may ask for, with one type of A and B and one layout of C and D.
cublasStatus_t CheckKind(const Desc& desc, const Layout& a, const Layout& b, const Layout& c,
                         const Layout& d) {
  const bool known =
      desc.compute == CUBLAS_COMPUTE_32F && desc.scale == CUDA_R_32F &&
      desc.trans_a == CUBLAS_OP_T && desc.trans_b == CUBLAS_OP_N &&
      (desc.epilogue == CUBLASLT_EPILOGUE_DEFAULT || desc.epilogue == CUBLASLT_EPILOGUE_BIAS) &&
      IsOneOf(a.type) && a.type == b.type && d.type == CUDA_R_32F;
  if (!known || !(c == d)) return CUBLAS_STATUS_NOT_SUPPORTED;
  return Refuse(WhyNotShapes(a, b, d));
}

}  // namespace

void Set(const Faults& faults) {
  const std::lock_guard lock(The().mutex);
  The().faults = faults;
}
bool IsAbsent() { return FaultsNow().absent; }
Counts Now() {
  const std::lock_guard lock(The().mutex);
  return The().counts;
}

}  // namespace penstock::cublas_lt_standin

// NOLINTBEGIN: names and signatures are cuBLASLt's.
using namespace penstock::cublas_lt_standin;  // Inside the C functions alone.

extern "C" {

size_t cublasLtGetVersion() {
  const int version = FaultsNow().version;
  return version > 0 ? static_cast<size_t>(version) : CUBLAS_VERSION;
}

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
  }
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  int count = 0, device = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0 ||
      cudaGetDevice(&device) != cudaSuccess) {
    return CUBLAS_STATUS_NOT_INITIALIZED;
  }
  *handle = new cublasLtContext{device};
  Count(&Counts::handles, 1);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete handle;
  Count(&Counts::handles, -1);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return Make(desc, Desc{.compute = compute, .scale = scale});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return Destroy(desc); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  Desc own = Read<Desc>(desc);
  cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSA) status = Take(value, bytes, own.trans_a);
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSB) status = Take(value, bytes, own.trans_b);
  if (attribute == CUBLASLT_MATMUL_DESC_EPILOGUE) status = Take(value, bytes, own.epilogue);
  if (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER) status = Take(value, bytes, own.bias);
  Write(own, desc);
  return status;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
  return Make(layout,
              Layout{type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(cols), ld});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return Destroy(layout);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return Make(preference, Preference());
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return Destroy(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  Preference own = Read<Preference>(preference);
  cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
    status = Take(value, bytes, own.workspace_bytes);
  }
  const int matrix = static_cast<int>(attribute) - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  if (matrix >= 0 && matrix < 4) status = Take(value, bytes, own.alignment[matrix]);
  Write(own, preference);
  return status;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* found) {
  *found = 0;
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
  Count(&Counts::searches, 1);
  const Layout of_d = Read<Layout>(d);
  const cublasStatus_t status =
      CheckKind(Read<Desc>(desc), Read<Layout>(a), Read<Layout>(b), Read<Layout>(c), of_d);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (FaultsNow().no_heuristic) return CUBLAS_STATUS_NOT_SUPPORTED;
  const Desc asked = Read<Desc>(desc);
  if (asked.epilogue == CUBLASLT_EPILOGUE_BIAS &&
      (asked.bias == nullptr ||
       reinterpret_cast<std::uintptr_t>(asked.bias) % kBiasAlignment != 0)) {
    return Refuse("the heuristic is asked without a bias of 16 bytes' alignment");
  }
  const Preference wanted = Read<Preference>(preference);
  Algo algo = BestAlgo(of_d, wanted.workspace_bytes);
  std::copy_n(wanted.alignment, 4, algo.alignment);
  results[0] = cublasLtMatmulHeuristicResult_t();
  results[0].workspaceSize = WorkspaceBytes(algo, of_d);
  results[0].state = CUBLAS_STATUS_SUCCESS;
  Write(algo, &results[0].algo);
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t handle, cublasComputeType_t compute,
                                      cudaDataType_t scale, cudaDataType_t a, cudaDataType_t b,
                                      cudaDataType_t c, cudaDataType_t d, int id,
                                      cublasLtMatmulAlgo_t* algo) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (id < 0 || id >= kAlgos || algo == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F || !IsOneOf(a) || a != b ||
      c != CUDA_R_32F || d != CUDA_R_32F) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  Write(Algo{.id = id}, algo);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  Algo own = Read<Algo>(algo);
  if (attribute != CUBLASLT_ALGO_CONFIG_SPLITK_NUM) return CUBLAS_STATUS_NOT_SUPPORTED;
  const cublasStatus_t status = Take(value, bytes, own.split);
  if (status != CUBLAS_STATUS_SUCCESS || own.split < 1) return CUBLAS_STATUS_INVALID_VALUE;
  Write(own, algo);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  int device = 0;
  if (handle == nullptr || cudaGetDevice(&device) != cudaSuccess || handle->device != device) {
    return CUBLAS_STATUS_NOT_INITIALIZED;
  }
  Product p = {.desc = Read<Desc>(desc),
               .a = static_cast<const std::byte*>(a),
               .b = static_cast<const std::byte*>(b),
               .d = static_cast<float*>(d),
               .a_layout = Read<Layout>(a_layout),
               .b_layout = Read<Layout>(b_layout),
               .d_layout = Read<Layout>(d_layout)};
  const cublasStatus_t status =
      CheckKind(p.desc, p.a_layout, p.b_layout, Read<Layout>(c_layout), p.d_layout);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (alpha == nullptr || beta == nullptr) return Refuse("alpha or beta is null");
  if (c != d) return Refuse("C is not D");
  std::memcpy(&p.alpha, alpha, sizeof(p.alpha));
  std::memcpy(&p.beta, beta, sizeof(p.beta));
  p.algo = algo != nullptr ? Read<Algo>(algo) : BestAlgo(p.d_layout, workspace_bytes);
  if (std::string why = WhyNotBuffers(p, workspace, workspace_bytes); !why.empty()) {
    return Refuse(why);
  }
  if (const int refused = FaultsNow().refused; refused != 0) {
    return static_cast<cublasStatus_t>(refused);
  }
  if (FaultsNow().execution_failed) return CUBLAS_STATUS_EXECUTION_FAILED;
  const auto run = [p] {
    const penstock::cuda_standin::Work work;
    Compute(p);
    Count(&Counts::products, 1);
  };
  if (penstock::cuda_standin::Note(stream, run)) return CUBLAS_STATUS_SUCCESS;
  penstock::cuda_standin::Await(stream);
  run();
  return CUBLAS_STATUS_SUCCESS;
}
}
// NOLINTEND
