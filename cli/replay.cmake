# SPDX-License-Identifier: Apache-2.0
# penstock replay.
target_sources(penstock PRIVATE replay.cc replay_report.cc)
target_link_libraries(penstock PRIVATE kvstore)
if(PENSTOCK_TESTS)
  penstock_python_test(replay SCRIPT ${PROJECT_SOURCE_DIR}/tests/replay_test.py ARGS $<TARGET_FILE:penstock> LABEL model)
endif()
