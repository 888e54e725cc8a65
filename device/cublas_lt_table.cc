// SPDX-License-Identifier: Apache-2.0
#include "device/cublas_lt_table.h"

#include <memory>
#include <string>
#include <utility>

#include "device/cublas_lt_symbols.h"

namespace penstock {
namespace {

static_assert(kCublasSuccess == CUBLAS_STATUS_SUCCESS &&
              kCublasAllocFailed == CUBLAS_STATUS_ALLOC_FAILED &&
              kCublasInvalidValue == CUBLAS_STATUS_INVALID_VALUE &&
              kCublasNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);

// The first major version whose structs are those of this header.
constexpr std::size_t kMajorMin = 12;

const CublasLtSymbols& Symbols() {
  static const CublasLtSymbols symbols = FindCublasLtSymbols();
  return symbols;
}

}  // namespace

// cuBLASLt's matrices are columns, ours rows: to it, y is [outputs, rows] = w^T * x, of w
// [cols, outputs] and x [cols, rows].
struct CublasLtPlan {
  CublasLtPlan() = default;
  ~CublasLtPlan() {
    for (const cublasLtMatrixLayout_t layout : {w, x, y}) {
      if (layout != nullptr) (void)Symbols().layout_destroy(layout);
    }
    if (desc != nullptr) (void)Symbols().desc_destroy(desc);
  }
  CublasLtPlan(const CublasLtPlan&) = delete;
  CublasLtPlan& operator=(const CublasLtPlan&) = delete;

  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algo = {};
  bool add = false;
  bool bias = false;
};

namespace {

cudaDataType_t TypeOf(CublasLtType type) {
  switch (type) {
    case CublasLtType::kF16:
      return CUDA_R_16F;
    case CublasLtType::kBF16:
      return CUDA_R_16BF;
    case CublasLtType::kF32:
      break;
  }
  return CUDA_R_32F;
}

#define RETURN_IF_BAD(call)                                                    \
  do {                                                                         \
    if (const cublasStatus_t status = call; status != CUBLAS_STATUS_SUCCESS) { \
      return status;                                                           \
    }                                                                          \
  } while (false)

cublasStatus_t Describe(const CublasLtProduct& p, CublasLtPlan& plan) {
  const CublasLtSymbols& lt = Symbols();
  plan.add = p.add;
  plan.bias = p.bias;
  RETURN_IF_BAD(lt.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  RETURN_IF_BAD(
      lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  if (p.bias) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    RETURN_IF_BAD(
        lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue)));
    // The heuristic takes a bias to be as aligned as this, and reads nothing there.
    alignas(16) static constexpr float kAligned[4] = {};
    const float* const bias = kAligned;
    RETURN_IF_BAD(lt.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)));
  }
  const auto size = [](std::int64_t n) { return static_cast<std::uint64_t>(n); };
  const cudaDataType_t type = TypeOf(p.type);
  RETURN_IF_BAD(lt.layout_create(&plan.w, type, size(p.cols), size(p.outputs), p.w_stride));
  RETURN_IF_BAD(lt.layout_create(&plan.x, type, size(p.cols), size(p.rows), p.x_stride));
  return lt.layout_create(&plan.y, CUDA_R_32F, size(p.outputs), size(p.rows), p.y_stride);
}

cublasStatus_t Choose(CublasLtHandle handle, const CublasLtProduct& p, std::size_t workspace_bytes,
                      cublasLtMatmulPreference_t preference, CublasLtPlan& plan) {
  const CublasLtSymbols& lt = Symbols();
  RETURN_IF_BAD(lt.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                  &workspace_bytes, sizeof(workspace_bytes)));
  const std::pair<cublasLtMatmulPreferenceAttributes_t, std::uint32_t> alignments[] = {
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.w_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.x_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.y_alignment},
      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.y_alignment}};
  for (const auto& [attribute, bytes] : alignments) {
    RETURN_IF_BAD(lt.preference_set(preference, attribute, &bytes, sizeof(bytes)));
  }
  cublasLtMatmulHeuristicResult_t best = {};
  int found = 0;
  RETURN_IF_BAD(lt.get_heuristic(handle, plan.desc, plan.w, plan.x, plan.y, plan.y, preference, 1,
                                 &best, &found));
  if (found == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
  plan.algo = best.algo;
  return best.state;
}

int PlanCreate(CublasLtHandle handle, const CublasLtProduct& product, std::size_t workspace_bytes,
               CublasLtPlan** plan) {
  auto made = std::make_unique<CublasLtPlan>();
  RETURN_IF_BAD(Describe(product, *made));
  cublasLtMatmulPreference_t preference = nullptr;
  RETURN_IF_BAD(Symbols().preference_create(&preference));
  const cublasStatus_t status = Choose(handle, product, workspace_bytes, preference, *made);
  (void)Symbols().preference_destroy(preference);
  if (status == CUBLAS_STATUS_SUCCESS) *plan = made.release();
  return status;
}

int Multiply(CublasLtHandle handle, CublasLtPlan* plan, const void* x, const void* w,
             const float* bias, float* y, void* workspace, std::size_t workspace_bytes,
             CudaStreamHandle stream) {
  const CublasLtSymbols& lt = Symbols();
  if (plan->bias) {
    RETURN_IF_BAD(lt.desc_set(plan->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)));
  }
  const float one = 1, beta = plan->add ? 1 : 0;
  return lt.matmul(handle, plan->desc, &one, w, plan->w, x, plan->x, &beta, y, plan->y, y, plan->y,
                   &plan->algo, workspace, workspace_bytes, stream);
}

#undef RETURN_IF_BAD

const CublasLtApi kCublasLtApi = {
    .create = [](CublasLtHandle* handle) -> int { return Symbols().create(handle); },
    .destroy = [](CublasLtHandle handle) -> int { return Symbols().destroy(handle); },
    .plan_create = PlanCreate,
    .plan_destroy = [](CublasLtPlan* plan) { delete plan; },
    .multiply = Multiply,
    .get_status_name = [](int status) -> const char* {
      return Symbols().get_status_name(static_cast<cublasStatus_t>(status));
    },
};

std::string Text(std::size_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

// Why those functions cannot be used; empty: they can.
std::string WhyNot(int* version) {
  const CublasLtSymbols& symbols = Symbols();
  if (!symbols.why_not.empty()) return symbols.why_not;
  const std::size_t found = symbols.get_version();
  *version = static_cast<int>(found);
  return WhyNotCublasLtVersion(found);
}

}  // namespace

std::string WhyNotCublasLtVersion(std::size_t version) {
  const std::size_t major = version / 10000;
  if (major >= kMajorMin && major <= CUBLAS_VER_MAJOR) return {};
  return "cuBLASLt is " + Text(version) + ", the plug-in needs " + std::to_string(kMajorMin) +
         ".0.0 or a later one up to " + std::to_string(CUBLAS_VER_MAJOR);
}

const CublasLtLibrary* LoadCublasLt() {
  static int version = 0;
  static const std::string why_not = WhyNot(&version);
  static const CublasLtLibrary library = {.api = why_not.empty() ? &kCublasLtApi : nullptr,
                                          .version = version,
                                          .header_version = CUBLAS_VERSION,
                                          .why_not = why_not.c_str()};
  return &library;
}

}  // namespace penstock
