// SPDX-License-Identifier: Apache-2.0
// exp for kernels: fixed sequences of correctly rounded operations, so that every target gives the
// same bits. A NaN gives some float.
//
// Exp: n = fma(x, log2(e), c) - c with c = 1.5 * 2^23, which rounds to even;
// r = fma(n, -ln2_low, fma(n, -ln2_high, x)); a degree-6 polynomial in r by Horner with fma, times
// 2^n, which is exact.
// Exp2: n = (x + c) - c; r = x - n; a degree-5 polynomial in r by Horner with fma, times 2^n.
#pragma once

namespace penstock::kernels {

// e^x, within 1 ulp. Below -87.3 it is 0 (also for -infinity), above 88.37 it is infinity.
float Exp(float x);

// 2^x for softmax weights: x <= 0, within 2 ulp, exactly 1 at 0. Below -100 it is 0 (also for
// -infinity).
float Exp2(float x);

}  // namespace penstock::kernels
