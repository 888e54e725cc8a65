# SPDX-License-Identifier: Apache-2.0
# penstock trace: what it computes and writes as a library, so that tests reach it.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/trace_page.html)
file(READ trace_page.html TRACE_PAGE)
configure_file(trace_page.cc.in ${CMAKE_CURRENT_BINARY_DIR}/trace_page.cc @ONLY)
penstock_library(cli_trace
  SRCS trace_chrome.cc trace_data.cc trace_html.cc trace_otlp.cc trace_summary.cc trace_text.cc
       ${CMAKE_CURRENT_BINARY_DIR}/trace_page.cc
  DEPS base cli_parts nlohmann_json::nlohmann_json)
target_sources(penstock PRIVATE trace_client.cc trace_collector_client.cc trace_service.cc)
target_link_libraries(penstock PRIVATE cli_trace)
if(PENSTOCK_TESTS)
  penstock_test(cli_trace_test SRCS trace_test.cc trace_export_test.cc DEPS cli_trace)
  penstock_python_test(trace SCRIPT ${PROJECT_SOURCE_DIR}/tests/trace_test.py ARGS $<TARGET_FILE:penstock>
                       LABEL model)
endif()
