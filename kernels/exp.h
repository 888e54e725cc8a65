// SPDX-License-Identifier: Apache-2.0
// exp for kernels: one fixed sequence of correctly rounded operations, so that every target gives
// the same bits, within 2 ulp of the true value on [-87, 88]. Below -87.3 it is 0 (also for
// -infinity), above 88.37 it is infinity.
//
// n = round to even(x * log2(e)); r = fma(n, -ln2_hi, x); r = fma(n, -ln2_lo, r); a degree-6
// polynomial in r by Horner with fma; result = poly * 2^n by adding n to the exponent in two steps.
#pragma once

namespace penstock::kernels {

float Exp(float x);

}  // namespace penstock::kernels
