// SPDX-License-Identifier: Apache-2.0
// Fibers of kernels/simt.cc: stacks and the switch between them, told to the address sanitizer.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define PENSTOCK_FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PENSTOCK_FIBER_ASAN 1
#endif
#endif
#if defined(PENSTOCK_FIBER_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#error "fibers know x86-64 only"
#endif

namespace penstock::simt {

#if defined(PENSTOCK_FIBER_ASAN)
inline constexpr bool kAddressSanitizer = true;
inline constexpr std::size_t kStackBytes = std::size_t{256} << 10;
#else
inline constexpr bool kAddressSanitizer = false;
inline constexpr std::size_t kStackBytes = std::size_t{64} << 10;
#endif

// One side of a switch: a fiber, or the code that started them.
struct Context {
  void* stack_pointer = nullptr;
  const void* stack_bottom = nullptr;  // For the sanitizer; the starter's is filled in by the first
  std::size_t stack_bytes = 0;         // fiber.
};

// Saves what a call must keep to the stack, stores the stack pointer in *save and goes on at `load`.
[[gnu::naked, gnu::noinline]] inline void SwitchStacks(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

// Goes on in `to`; returns when something switches back to `from`. `ends`: nothing ever will.
inline void SwitchTo(Context& from, const Context& to, bool ends) {
#if defined(PENSTOCK_FIBER_ASAN)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake_stack, to.stack_bottom, to.stack_bytes);
  SwitchStacks(&from.stack_pointer, to.stack_pointer);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  (void)ends;
  SwitchStacks(&from.stack_pointer, to.stack_pointer);
#endif
}

// The first thing a fiber does. `starter`: filled in for the first fiber of a run, which it was that
// switched to; else null.
inline void EnterFiber(Context* starter) {
#if defined(PENSTOCK_FIBER_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, starter ? &starter->stack_bottom : nullptr,
                                  starter ? &starter->stack_bytes : nullptr);
#else
  (void)starter;
#endif
}

// A context that begins in `entry`, which must not return, on the stack [bottom, bottom +
// kStackBytes). Stacks that begin at the same offset of a page would fight for the same cache lines,
// so `colour` moves them apart.
inline Context MakeContext(char* bottom, std::size_t colour, void (*entry)()) {
#if defined(PENSTOCK_FIBER_ASAN)
  __asan_unpoison_memory_region(bottom, kStackBytes);
#endif
  const auto top = reinterpret_cast<std::uintptr_t>(bottom) + kStackBytes - colour % 29 * 576;
  auto* sp = reinterpret_cast<void**>(top & ~std::uintptr_t{15});
  *--sp = nullptr;  // A function begins with rsp = 8 mod 16.
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;  // The registers that SwitchStacks pops.
  return {.stack_pointer = sp, .stack_bottom = bottom, .stack_bytes = kStackBytes};
}

}  // namespace penstock::simt
