# SPDX-License-Identifier: Apache-2.0
# penstock quality: what it measures and draws as a library, so that tests reach it.
penstock_library(cli_quality SRCS quality_measure.cc quality_needle.cc quality_recode.cc quality_report.cc
                 DEPS cli_bench codecs engine kvstore_quality)
target_sources(penstock PRIVATE quality.cc)
target_link_libraries(penstock PRIVATE cli_quality)
if(PENSTOCK_TESTS)
  penstock_test(cli_quality_test SRCS quality_report_test.cc DEPS cli_quality)
  penstock_python_test(quality SCRIPT ${PROJECT_SOURCE_DIR}/tests/quality_test.py ARGS $<TARGET_FILE:penstock>
                       LABEL model)
endif()
