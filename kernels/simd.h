// SPDX-License-Identifier: Apache-2.0
// Intrinsics, and attributes for files of one SIMD target. SIMD_TARGET, defined by the file, is the
// instruction set as in gnu::target; it belongs to each function, since a flag for the file would
// let shared inline code use instructions that other CPUs lack.
#pragma once

// g++ 12 spells "any value" in its AVX-512 headers as a register initialized with itself, and then
// warns of it (GCC bug 105593).
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// A helper without a call of its own, and a function that is called.
#define SIMD_INLINE [[gnu::target(SIMD_TARGET), gnu::always_inline]] inline
#define SIMD_CALL [[gnu::target(SIMD_TARGET), gnu::noinline]]

// Before a loop whose count is a small constant and whose index picks a register. Sanitizers
// instrument every unrolled copy, which takes clang minutes a file; there the loops stay loops.
#if defined(PENSTOCK_SANITIZED)
#define SIMD_UNROLL
#elif defined(__clang__)
#define SIMD_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SIMD_UNROLL _Pragma("GCC unroll 16")
#endif
