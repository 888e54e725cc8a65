# SPDX-License-Identifier: Apache-2.0
# How a folder becomes a library, a test, a benchmark or a fuzz target. The DEPS line is the arrow of the tree.

set(PENSTOCK_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wimplicit-fallthrough -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  list(APPEND PENSTOCK_WARNINGS -Wthread-safety -Wno-gnu-zero-variadic-macro-arguments)
endif()

# penstock_library(name SRCS ... DEPS ...): one folder, one library, one link line.
function(penstock_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SRCS;DEPS")
  add_library(${name} STATIC ${arg_SRCS})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_link_libraries(${name} PUBLIC ${arg_DEPS})
endfunction()

# penstock_test(name SRCS ... DEPS ... [LABEL unit|model] [TIMEOUT s]): unit tests need nothing but the
# build; `model` tests need a real model file and skip, saying so, where there is none.
function(penstock_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LABEL;TIMEOUT" "SRCS;DEPS")
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  add_executable(${name} ${arg_SRCS})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_compile_definitions(${name} PRIVATE PENSTOCK_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${arg_DEPS} GTest::gtest_main)
  gtest_discover_tests(${name} PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT}
                                          DISCOVERY_TIMEOUT 60)
endfunction()

# penstock_benchmark(name SRCS ... DEPS ...): a Google Benchmark program, never run by the tests.
function(penstock_benchmark name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SRCS;DEPS")
  add_executable(${name} ${arg_SRCS})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} benchmark::benchmark_main)
endfunction()

# penstock_fuzz(name SRCS ... DEPS ... CORPUS dir): a libFuzzer program where the compiler has it (clang
# with PENSTOCK_FUZZ); everywhere else the same file with a main that replays the committed corpus.
function(penstock_fuzz name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "CORPUS" "SRCS;DEPS")
  add_executable(${name} ${arg_SRCS})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_link_libraries(${name} PRIVATE ${arg_DEPS})
  if(PENSTOCK_FUZZ)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    add_test(NAME fuzz/${name}
             COMMAND ${name} -max_total_time=${PENSTOCK_FUZZ_SECONDS} -timeout=10 -rss_limit_mb=2048
                     -artifact_prefix=${CMAKE_CURRENT_BINARY_DIR}/ ${CMAKE_CURRENT_BINARY_DIR}/${name}_new
                     ${arg_CORPUS})
    file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/${name}_new)
  else()
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/replay_corpus_main.cc)
    add_test(NAME fuzz/${name} COMMAND ${name} ${arg_CORPUS})
  endif()
  set_tests_properties(fuzz/${name} PROPERTIES LABELS fuzz TIMEOUT 300)
endfunction()
