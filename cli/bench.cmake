# SPDX-License-Identifier: Apache-2.0
# penstock bench: what needs no cluster, with its tests, and the rest of the program.
penstock_library(cli_bench
  SRCS bench_driver.cc bench_hosts.cc bench_lengths.cc bench_picture.cc bench_report.cc bench_scale.cc bench_stats.cc bench_trace.cc
       bench_workload.cc svg_chart.cc
  DEPS base launch model nlohmann_json::nlohmann_json)
target_sources(penstock PRIVATE bench_client.cc bench_hosts_client.cc bench_run_client.cc bench_scale_client.cc bench_target_client.cc)
target_link_libraries(penstock PRIVATE cli_bench)

if(PENSTOCK_TESTS)
  penstock_test(cli_bench_test SRCS bench_driver_test.cc bench_hosts_test.cc bench_report_test.cc bench_test.cc
                DEPS cli_bench GTest::gmock)
endif()
