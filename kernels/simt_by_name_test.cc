// SPDX-License-Identifier: Apache-2.0
#include "kernels/simt_by_name.h"

#include <gtest/gtest.h>

#include <string>

#include "kernels/gpu.h"

namespace penstock::simt {
namespace {

struct Pair {
  float factor;
  int add;
};

template <int steps>
GPU_KERNEL(32, 1)
Scale(const float* x, Pair by, float* y) {
  for (int i = 0; i < steps; ++i) y[i] = x[i] * by.factor + static_cast<float>(by.add);
}

// As nvcc would name Scale<2>, with its mark of this file for each unnamed namespace.
constexpr char kScale[] =
    "_ZN8penstock4simt48_GLOBAL__N__00c0ffee_15_simt_by_name_cu_4d61be215ScaleILi2EEEvPKfNS1_"
    "4PairEPf";

TEST(SimtByNameTest, UnnamedNamespaces) {
  EXPECT_EQ(WithPlainNamespaces(kScale),
            "_ZN8penstock4simt12_GLOBAL__N_15ScaleILi2EEEvPKfNS1_4PairEPf");
  EXPECT_EQ(WithPlainNamespaces("_Z3Foov"), "_Z3Foov");
  EXPECT_EQ(WithPlainNamespaces(""), "");
  // Lengths that lie.
  EXPECT_EQ(WithPlainNamespaces("_ZN99_GLOBAL__N__x"), "_ZN12_GLOBAL__N_1");
  EXPECT_EQ(WithPlainNamespaces("_ZN1_GLOBAL__N__x"), "_ZN12_GLOBAL__N_1_x");
  EXPECT_EQ(WithPlainNamespaces("_GLOBAL__N_"), "12_GLOBAL__N_1");
}

TEST(SimtByNameTest, CallsWhatHasTheName) {
  const float x[2] = {3, 5};
  float y[2] = {};
  const float* from = x;
  float* to = y;
  GPU_LAUNCH(Scale<2>, 1, 1, 0, nullptr, from, Pair{}, to);
  const NamedKernel found = FindKernel(kScale);
  ASSERT_NE(found.kernel, nullptr) << found.why;
  Pair by = {2, 1};
  void* const arguments[] = {&from, &by, &to};
  const std::function<void()> call = found.bind(found.kernel, arguments);
  by.factor = 9;  // It has its own.
  call();
  EXPECT_EQ(y[0], 7);
  EXPECT_EQ(y[1], 11);
}

TEST(SimtByNameTest, SaysWhatIsMissing) {
  const NamedKernel none = FindKernel("_ZN8penstock4simt7NoSuchEv");
  EXPECT_EQ(none.kernel, nullptr);
  EXPECT_EQ(none.why, "no emulated kernel is called _ZN8penstock4simt7NoSuchEv");
}

}  // namespace
}  // namespace penstock::simt
