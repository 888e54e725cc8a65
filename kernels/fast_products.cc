// SPDX-License-Identifier: Apache-2.0
#include "kernels/fast_products.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "kernels/dense_format.h"

namespace penstock::kernels {
namespace {

// So that each row begins at 16 bytes: without that, no algorithm of tensor cores is to be had.
constexpr std::int32_t kStrideMultiple = 8;
constexpr int kCudaUnknown = 999;  // cudaErrorUnknown

std::int32_t StrideOf(std::int32_t cols) {
  return (cols + kStrideMultiple - 1) / kStrideMultiple * kStrideMultiple;
}

std::size_t ElementBytes(WeightFormat dense) { return dense == WeightFormat::kF32 ? 4 : 2; }

CublasLtType TypeOf(WeightFormat dense) {
  switch (dense) {
    case WeightFormat::kF16:
      return CublasLtType::kF16;
    case WeightFormat::kBF16:
      return CublasLtType::kBF16;
    default:
      return CublasLtType::kF32;
  }
}

std::uint32_t AlignmentOf(const void* p, std::int64_t stride_bytes) {
  const auto together =
      reinterpret_cast<std::uintptr_t>(p) | static_cast<std::uintptr_t>(stride_bytes);
  return together % 16 == 0 ? 16 : together % 8 == 0 ? 8 : together % 4 == 0 ? 4 : 2;
}

// By the host: nothing is in the stream.
bool IsRefusal(int status) {
  return status == kCublasAllocFailed || status == kCublasInvalidValue ||
         status == kCublasNotSupported;
}

std::int32_t RowsMin(const PackedMatrix& matrix) {
  return matrix.takes_int8() ? FastProducts::kInt8RowsMin : FastProducts::kFloatRowsMin;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FastProducts>> FastProducts::Make(CudaDevice& device,
                                                                 CudaStream& stream,
                                                                 CudaLaunches& launches,
                                                                 std::size_t room_bytes,
                                                                 std::size_t plans_max) {
  ASSIGN_OR_RETURN(const CublasLtLibrary* const library, FindCublasLt(device.plugin()));
  std::unique_ptr<FastProducts> made(
      new FastProducts(device, stream, launches, *library->api, room_bytes, plans_max));
  (void)stream.handle();  // Of whose GPU the handle is.
  if (const int status = library->api->create(&made->handle_); status != kCublasSuccess) {
    made->handle_ = nullptr;
    return absl::InternalError(absl::StrCat(
        "cuBLASLt does not start: ", library->api->get_status_name(status), " (", status, ")"));
  }
  ASSIGN_OR_RETURN(made->workspace_, device.Allocate(kWorkspaceBytes));
  return made;
}

FastProducts::~FastProducts() {
  (void)stream_.Synchronize();
  for (const Plan& plan : plans_) {
    if (plan.made != nullptr) lt_.plan_destroy(plan.made);
  }
  if (handle_ != nullptr) (void)lt_.destroy(handle_);
}

std::size_t FastProducts::BytesMax(std::int32_t rows, std::int32_t cols_max) {
  return kWorkspaceBytes + kRoomBytes +
         2 * static_cast<std::size_t>(rows) * static_cast<std::size_t>(StrideOf(cols_max));
}

std::vector<LinearOutput> FastProducts::Multiply(const Activations& x, std::int32_t rows,
                                                 std::span<const LinearOutput> outputs) {
  std::vector<LinearOutput> others;
  Input input;
  for (const LinearOutput& output : outputs) {
    const WeightFormat dense = DenseFormat(output.matrix->format);
    if (rows < RowsMin(*output.matrix) || output.matrix->rows == 0) {
      others.push_back(output);
      continue;
    }
    if (input.data == nullptr || input.format != dense) input = RoundInput(x, rows, dense);
    if (!MultiplyOne(input, rows, output)) others.push_back(output);
  }
  return others;
}

FastProducts::Input FastProducts::RoundInput(const Activations& x, std::int32_t rows,
                                             WeightFormat format) {
  if (format == WeightFormat::kF32) {
    CHECK(x.f32 != nullptr);
    return {.data = x.f32, .format = format, .stride = x.cols};
  }
  const std::int32_t stride = StrideOf(x.cols);
  std::byte* const rounded =
      rounded_.AtLeast(2 * static_cast<std::size_t>(rows) * static_cast<std::size_t>(stride));
  launches_.Start("RoundRows", &CudaKernels::round_rows, x, rows, format, rounded, stride);
  return {.data = rounded, .format = format, .stride = stride};
}

bool FastProducts::MultiplyOne(const Input& x, std::int32_t rows, const LinearOutput& output) {
  const PackedMatrix& matrix = *output.matrix;
  const std::int32_t stride = StrideOf(matrix.cols);
  const std::size_t row_bytes = static_cast<std::size_t>(stride) * ElementBytes(x.format);
  const std::size_t panel_bytes = kPanelRows * row_bytes;
  if (panel_bytes > room_bytes_ || reinterpret_cast<std::uintptr_t>(output.bias) % 16 != 0) {
    return false;
  }
  const auto panels = static_cast<std::int32_t>(room_bytes_ / panel_bytes);
  const std::int32_t piece_rows = std::min(matrix.rows, panels * kPanelRows);
  std::byte* const room = room_.AtLeast(static_cast<std::size_t>(piece_rows) * row_bytes);
  CublasLtProduct product = {.type = TypeOf(x.format),
                             .rows = rows,
                             .cols = matrix.cols,
                             .x_stride = x.stride,
                             .w_stride = stride,
                             .y_stride = matrix.rows,
                             .add = output.add,
                             .bias = output.bias != nullptr};
  product.x_alignment =
      AlignmentOf(x.data, x.stride * static_cast<std::int64_t>(ElementBytes(x.format)));
  product.y_alignment = AlignmentOf(output.y, std::int64_t{matrix.rows} * 4);
  const auto rows_from = [&](std::int32_t begin) {
    return std::min(piece_rows, matrix.rows - begin);
  };
  for (std::int32_t begin = 0; begin < matrix.rows; begin += piece_rows) {
    product.outputs = rows_from(begin);
    if (PlanOf(product) == nullptr) return false;
  }
  for (std::int32_t begin = 0; begin < matrix.rows; begin += piece_rows) {
    product.outputs = rows_from(begin);
    const PackedMatrix piece = {
        .format = matrix.format,
        .rows = rows_from(begin),
        .cols = matrix.cols,
        .data = matrix.data + PackedBytes(matrix.format, begin, matrix.cols)};
    float* const y = output.y + begin;
    const float* const bias = output.bias == nullptr ? nullptr : output.bias + begin;
    CublasLtPlan* const plan = PlanOf(product);
    launches_.Start("UnpackRows", &CudaKernels::unpack_rows, piece, room, stride);
    bool refused = false;
    const auto multiply = [&] {
      const int status = lt_.multiply(handle_, plan, x.data, room, bias, y, workspace_->data(),
                                      kWorkspaceBytes, stream_.handle());
      // Later pieces cannot be undone, and a graph has to be what its key says.
      refused = begin == 0 && !stream_.capturing() && IsRefusal(status);
      if (refused) {
        Drop(product, status);
      } else {
        Expect(status, "cublasLtMatmul");
      }
    };
    launches_.Call("Multiply", multiply, piece, x.data, x.stride, rows, room, bias, y, output.add);
    if (refused) return false;
  }
  return true;
}

CublasLtPlan* FastProducts::PlanOf(const CublasLtProduct& product) {
  const auto found = std::ranges::find(plans_, product, &Plan::product);
  if (found != plans_.end()) {
    plans_.splice(plans_.begin(), plans_, found);
    return plans_.front().made;
  }
  Plan plan = {.product = product};
  (void)stream_.handle();  // On whose GPU it will run.
  const int status = lt_.plan_create(handle_, product, kWorkspaceBytes, &plan.made);
  if (status != kCublasSuccess) {
    plan.made = nullptr;
    SayExact(product, status);
  }
  plans_.push_front(plan);
  if (plans_.size() > plans_max_) {
    if (plans_.back().made != nullptr) lt_.plan_destroy(plans_.back().made);
    plans_.pop_back();
  }
  return plan.made;
}

void FastProducts::Drop(const CublasLtProduct& product, int status) {
  const auto found = std::ranges::find(plans_, product, &Plan::product);
  CHECK(found != plans_.end());
  lt_.plan_destroy(found->made);
  found->made = nullptr;
  SayExact(product, status);
}

void FastProducts::SayExact(const CublasLtProduct& product, int status) {
  if (said_.size() == kSaidMax ||
      !said_.emplace(product.type, product.outputs, product.cols).second) {
    return;
  }
  LOG_WARNING("fast_product_is_exact", {{"rows", product.rows},
                                        {"outputs", product.outputs},
                                        {"cols", product.cols},
                                        {"why", lt_.get_status_name(status)}});
}

void FastProducts::Expect(int status, const char* what) {
  if (status == kCublasSuccess) return;
  stream_.Expect(kCudaUnknown,
                 absl::StrCat(what, ": ", lt_.get_status_name(status), " (", status, ")"));
}

}  // namespace penstock::kernels
