# SPDX-License-Identifier: Apache-2.0
# How a folder becomes a library, a test, a benchmark or a fuzz target. The DEPS line is the arrow of the tree.

set(PENSTOCK_WARNINGS -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wimplicit-fallthrough -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  list(APPEND PENSTOCK_WARNINGS -Wthread-safety -Wno-gnu-zero-variadic-macro-arguments)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 warns of overlap inside std::string's own operator+ (bug 105651, fixed in 13).
  list(APPEND PENSTOCK_WARNINGS -Wno-restrict)
endif()

# What ./dev builds where it does not build everything.
add_custom_target(penstock_unit_tests)
add_custom_target(penstock_fuzzers)

# penstock_library(name SRCS ... DEPS ...): one folder, one library, one link line.
function(penstock_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SRCS;DEPS")
  add_library(${name} STATIC ${arg_SRCS})
  target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_link_libraries(${name} PUBLIC ${arg_DEPS})
endfunction()

# penstock_test(name SRCS ... DEPS ... [LABEL unit|rpc|model] [TIMEOUT s] [MODEL_TESTS p]): unit tests
# need nothing but the build; `rpc` tests run gRPC, into which the thread sanitizer cannot see, so its
# stage leaves them out; `model` tests need a real model file and skip, saying so, where there is none.
# TIMEOUT is that of a release build, 60 by default; under sanitizers a test may take five times as
# long. MODEL_TESTS is a GoogleTest pattern: those of a unit test's cases that need a real model.
function(penstock_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LABEL;TIMEOUT;MODEL_TESTS" "SRCS;DEPS")
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  if(PENSTOCK_SANITIZE)
    math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * 5")
  endif()
  add_executable(${name} ${arg_SRCS})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_compile_definitions(${name} PRIVATE PENSTOCK_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${arg_DEPS} GTest::gtest_main)
  set(filter)
  if(arg_MODEL_TESTS)
    set(filter TEST_FILTER "-${arg_MODEL_TESTS}")
    gtest_discover_tests(${name} TEST_FILTER "${arg_MODEL_TESTS}" TEST_LIST ${name}_model
                         PROPERTIES LABELS model TIMEOUT 900 DISCOVERY_TIMEOUT 60)
  endif()
  gtest_discover_tests(${name} ${filter} PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT}
                                                    DISCOVERY_TIMEOUT 60)
  if(arg_LABEL MATCHES "^(unit|rpc)$")
    add_dependencies(penstock_unit_tests ${name})
  endif()
endfunction()

# penstock_python_test(name SCRIPT file [ARGS ...] [LABEL unit|model|tidy] [VENV]): a Python
# script that exits with 0 when all is well and 77 to skip, run in the source folder. With VENV it has
# the packages of tests/requirements.txt, and skips where they are not installed. `unit` would run it
# under every sanitizer too, which tells nothing new unless it runs our programs, so the default is tidy.
function(penstock_python_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "VENV" "SCRIPT;LABEL" "ARGS")
  if(NOT arg_LABEL)
    set(arg_LABEL tidy)
  endif()
  cmake_path(ABSOLUTE_PATH arg_SCRIPT)
  set(python python3 -B)
  if(arg_VENV)
    set(python bash ${PROJECT_SOURCE_DIR}/tests/in_venv.sh)
  endif()
  add_test(NAME ${arg_LABEL}/${name} COMMAND ${python} ${arg_SCRIPT} ${arg_ARGS}
           WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${arg_LABEL}/${name} PROPERTIES LABELS ${arg_LABEL} SKIP_RETURN_CODE 77
                                                       TIMEOUT 600)  # What takes longest takes 140 s.
endfunction()

# penstock_benchmark(name SRCS ... DEPS ...): a Google Benchmark program, never run by the tests.
function(penstock_benchmark name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SRCS;DEPS")
  add_executable(${name} ${arg_SRCS})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} benchmark::benchmark_main)
endfunction()

# penstock_fuzz(name SRCS ... DEPS ... CORPUS dir): a libFuzzer program where the compiler has it (clang
# with PENSTOCK_FUZZ); everywhere else the same file with a main that replays the committed corpus, which
# must not be empty. CORPUS is tests/corpus/<target>. libFuzzer writes what it finds to the first folder
# it is given: one in the build folder, so that nothing joins the corpus by itself. An input that fails
# is left beside it, as <target>_crash-*, and is committed to the corpus with its fix.
function(penstock_fuzz name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "CORPUS" "SRCS;DEPS")
  cmake_path(ABSOLUTE_PATH arg_CORPUS)
  add_executable(${name} ${arg_SRCS})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_link_libraries(${name} PRIVATE ${arg_DEPS})
  add_dependencies(penstock_fuzzers ${name})
  if(PENSTOCK_FUZZ)
    set(new ${CMAKE_CURRENT_BINARY_DIR}/${name}_new)
    file(MAKE_DIRECTORY ${new})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    add_test(NAME fuzz/${name}
             COMMAND ${name} -max_total_time=${PENSTOCK_FUZZ_SECONDS} -timeout=10 -rss_limit_mb=2048
                     -print_final_stats=1 -artifact_prefix=${CMAKE_CURRENT_BINARY_DIR}/${name}_
                     ${new} ${arg_CORPUS})
  else()
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/replay_corpus_main.cc)
    add_test(NAME fuzz/${name} COMMAND ${name} ${arg_CORPUS})
  endif()
  set_tests_properties(fuzz/${name} PROPERTIES LABELS fuzz TIMEOUT 300)
endfunction()
