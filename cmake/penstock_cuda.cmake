# SPDX-License-Identifier: Apache-2.0
# GPU kernels: each *_cuda.cu is compiled twice, by nvcc for GPUs and by the C++ compiler for
# kernels/simt.h, where its tests run without a GPU. Without nvcc nothing of this is built.
#
#   PENSTOCK_CUDA       build GPU kernels (ON where nvcc is found; its headers serve both compilers)
#   PENSTOCK_NVCC       and let nvcc compile them: not under sanitizers, which it does not know

# 12.8 is the first that knows all of the architectures below.
find_package(CUDAToolkit 12.8 QUIET)
if(CUDAToolkit_FOUND AND CUDAToolkit_NVCC_EXECUTABLE AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  option(PENSTOCK_CUDA "Build GPU kernels, their emulated tests and the device kind cuda" ON)
else()
  option(PENSTOCK_CUDA "Build GPU kernels, their emulated tests and the device kind cuda" OFF)
endif()
set(PENSTOCK_NVCC OFF)
if(PENSTOCK_CUDA)
  find_package(CUDAToolkit 12.8 REQUIRED)
  if(NOT PENSTOCK_SANITIZE AND NOT PENSTOCK_FUZZ)
    set(PENSTOCK_NVCC ON)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      # A100, H100, B200; what is newer compiles the PTX of the last at its first start.
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
    endif()
    set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc knows it.
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
    if(CCACHE)
      set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
    endif()
  endif()
endif()

# The bits that kernels/gpu.h promises. Spills and stack frames are for tests/gpu_static_test.py.
set(PENSTOCK_NVCC_OPTIONS -fmad=false --expt-relaxed-constexpr -Werror=all-warnings
    -Xcompiler=-Wall,-Wextra,-Werror)
# Pragmas are for nvcc; a vector load from bytes is what it says.
set(PENSTOCK_SIMT_OPTIONS -Wno-unknown-pragmas -fno-strict-aliasing)

# Every program for a real GPU.
add_custom_target(penstock_gpu_programs)

# penstock_gpu_kernels(name SRCS x_cuda.cu ... [KERNELS names ...] [DEPS ...] [EMULATED]): libraries
# name (made by nvcc, where PENSTOCK_NVCC), name_simt (kernels and launchers as functions of the CPU)
# and name_race (the same, for the race check), with one interface. KERNELS: others made by this
# function, whose launchers these call. To link name_simt into a program, link simt_cudart or another
# stand-in for the CUDA runtime too. EMULATED: nothing for nvcc.
function(penstock_gpu_kernels name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "EMULATED" "" "SRCS;KERNELS;DEPS")
  if(NOT PENSTOCK_CUDA)
    return()
  endif()
  set(wrappers)
  foreach(source ${arg_SRCS})
    cmake_path(ABSOLUTE_PATH source)
    cmake_path(GET source STEM stem)
    set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/simt/${stem}.cc)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${source}\"\n")
    list(APPEND wrappers ${wrapper})
  endforeach()
  set(emulated ${arg_KERNELS})
  list(TRANSFORM emulated APPEND _simt)
  penstock_library(${name}_simt SRCS ${wrappers} DEPS ${emulated} simt ${arg_DEPS})
  target_compile_options(${name}_simt PRIVATE ${PENSTOCK_SIMT_OPTIONS})
  set_target_properties(${name}_simt PROPERTIES POSITION_INDEPENDENT_CODE ON)
  if(PENSTOCK_TESTS AND NOT PENSTOCK_SANITIZE)
    set(raced ${arg_KERNELS})
    list(TRANSFORM raced APPEND _race)
    penstock_library(${name}_race SRCS ${wrappers} DEPS ${raced} simt_race ${arg_DEPS})
    set_target_properties(${name}_race PROPERTIES EXCLUDE_FROM_ALL ON)
    target_compile_options(${name}_race PRIVATE ${PENSTOCK_SIMT_OPTIONS} -fsanitize=thread -g1)
  endif()
  if(PENSTOCK_NVCC AND NOT arg_EMULATED)
    add_library(${name} STATIC ${arg_SRCS})
    target_include_directories(${name} PUBLIC ${PROJECT_SOURCE_DIR})
    target_compile_options(${name} PRIVATE ${PENSTOCK_NVCC_OPTIONS})
    target_link_libraries(${name} PUBLIC ${arg_KERNELS} CUDA::cudart ${arg_DEPS})
    set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  endif()
endfunction()

# penstock_gpu_test(name SRCS x_cuda_test.cc ... KERNELS names ... [DEPS ...] [EMULATED] [TIMEOUT s]
# [RACE_SRCS ...] [RACE_FILTER p] [BANK_WAYS_MAX n]): the test of kernels that penstock_gpu_kernels
# made, written with kernels/cuda_testing.h, as three programs:
#   name        a unit test that runs them emulated; not under the thread sanitizer, which does not
#               know the emulator's switches
#   name_race   a unit test that checks them for races, and that no line takes more than n (2) times
#               the rounds of the banks that it could; not under sanitizers. It is some 20 times as
#               slow, so RACE_FILTER may choose cases, as a GoogleTest pattern
#   name_gpu    run by hand where there is a GPU; `penstock_gpu_programs` builds it; not if EMULATED
function(penstock_gpu_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "EMULATED" "TIMEOUT;RACE_FILTER;BANK_WAYS_MAX"
                        "SRCS;KERNELS;DEPS;RACE_SRCS")
  if(NOT PENSTOCK_CUDA)
    return()
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 60)
  endif()
  if(NOT PENSTOCK_SANITIZE MATCHES "thread")
    set(emulated ${arg_KERNELS})
    list(TRANSFORM emulated APPEND _simt)
    penstock_test(${name} SRCS ${arg_SRCS} DEPS ${emulated} simt_cudart ${arg_DEPS}
                  TIMEOUT ${arg_TIMEOUT})
    target_compile_options(${name} PRIVATE ${PENSTOCK_SIMT_OPTIONS})
  endif()
  if(NOT PENSTOCK_SANITIZE)
    set(raced ${arg_KERNELS})
    list(TRANSFORM raced APPEND _race)
    add_executable(${name}_race ${arg_SRCS} ${arg_RACE_SRCS}
                   ${PROJECT_SOURCE_DIR}/kernels/simt_race_main.cc)
    target_compile_options(${name}_race PRIVATE ${PENSTOCK_WARNINGS} ${PENSTOCK_SIMT_OPTIONS})
    target_compile_definitions(${name}_race PRIVATE PENSTOCK_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    target_link_libraries(${name}_race PRIVATE ${raced} simt_cudart ${arg_DEPS} GTest::gtest)
    if(NOT arg_BANK_WAYS_MAX)
      set(arg_BANK_WAYS_MAX 2)
    endif()
    set(filter)
    if(arg_RACE_FILTER)
      set(filter --gtest_filter=${arg_RACE_FILTER})
    endif()
    add_test(NAME unit/${name}_race
             COMMAND ${name}_race --bank-ways-max=${arg_BANK_WAYS_MAX} ${filter})
    set_tests_properties(unit/${name}_race PROPERTIES LABELS unit TIMEOUT ${arg_TIMEOUT})
    add_dependencies(penstock_unit_tests ${name}_race)
  endif()
  if(PENSTOCK_NVCC AND NOT arg_EMULATED)
    penstock_gpu_program(${name}_gpu SRCS ${arg_SRCS}
                         ${PROJECT_SOURCE_DIR}/kernels/cuda_testing_main.cc
                         DEPS ${arg_KERNELS} ${arg_DEPS} GTest::gtest)
  endif()
endfunction()

# penstock_gpu_program(name SRCS ... DEPS ...): a program for a machine with a GPU, a benchmark for
# instance; `penstock_gpu_programs` builds it. Needs PENSTOCK_NVCC.
function(penstock_gpu_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SRCS;DEPS")
  add_executable(${name} EXCLUDE_FROM_ALL ${arg_SRCS})
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_compile_definitions(${name} PRIVATE PENSTOCK_REAL_GPU PENSTOCK_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  # The C++ library is part of the program, which may run on another machine than this one.
  target_link_options(${name} PRIVATE -static-libstdc++ -static-libgcc)
  target_link_libraries(${name} PRIVATE ${arg_DEPS} CUDA::cudart)
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  add_dependencies(penstock_gpu_programs ${name})
endfunction()
