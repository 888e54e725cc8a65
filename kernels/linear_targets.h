// SPDX-License-Identifier: Apache-2.0
// The targets of MultiplyPanels and QuantizeRow, one file each. Arguments are checked by linear.cc
// and activations.cc; each may be called only where ThisCpu() has its instructions.
#pragma once

#include <cstdint>

#include "kernels/activations.h"
#include "kernels/packed_matrix.h"

namespace penstock::kernels {

// The specification.
void MultiplyPanelsScalar(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                          std::int32_t panel_begin, std::int32_t panel_end, float* y,
                          std::int64_t y_stride);
void MultiplyPanelsAvx2(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                        std::int32_t panel_begin, std::int32_t panel_end, float* y,
                        std::int64_t y_stride);
void MultiplyPanelsAvx512(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                          std::int32_t panel_begin, std::int32_t panel_end, float* y,
                          std::int64_t y_stride);
void MultiplyPanelsAvx512Vnni(const PackedMatrix& w, const Activations& x, std::int32_t rows,
                              std::int32_t panel_begin, std::int32_t panel_end, float* y,
                              std::int64_t y_stride);

void QuantizeRowScalar(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                       std::int32_t* sum);
void QuantizeRowAvx2(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                     std::int32_t* sum);
void QuantizeRowAvx512(const float* x, std::int32_t cols, std::int8_t* q, float* scale,
                       std::int32_t* sum);

}  // namespace penstock::kernels
