# SPDX-License-Identifier: Apache-2.0
# penstock bench: what needs no cluster, with its tests, and the rest of the program.
penstock_library(cli_bench SRCS bench_lengths.cc bench_stats.cc bench_trace.cc bench_workload.cc
  DEPS base model)

if(PENSTOCK_TESTS)
  penstock_test(cli_bench_test SRCS bench_test.cc DEPS cli_bench)
endif()
