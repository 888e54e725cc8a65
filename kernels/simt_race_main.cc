// SPDX-License-Identifier: Apache-2.0
// The main of test programs that check kernels for races. Lists the lines whose accesses to shared
// memory fight for banks.
//
//   --bank-ways-max=N   fails when a line takes more than N times the rounds it could, on average
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/simt_race.h"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  double ways_max = 32;
  for (int i = 1; i < argc; ++i) {
    const char* const flag = "--bank-ways-max=";
    if (std::strncmp(argv[i], flag, std::strlen(flag)) != 0) {
      std::printf("unknown argument %s\n", argv[i]);
      return 2;
    }
    ways_max = std::strtod(argv[i] + std::strlen(flag), nullptr);
  }
  int result = RUN_ALL_TESTS();
  for (const penstock::simt::BankUse& use : penstock::simt::TakeBankUse()) {
    if (use.Ways() <= 1.05) break;
    const bool over = use.Ways() > ways_max;
    std::printf("bank conflicts: %.2f ways in %llu requests at %s%s\n", use.Ways(),
                static_cast<unsigned long long>(use.requests), use.where.c_str(),
                over ? ", more than are allowed" : "");
    result = over ? 1 : result;
  }
  return result;
}
