# SPDX-License-Identifier: Apache-2.0
# The CUDA plug-in: libpenstock_cuda.so, beside the program (PENSTOCK_NVCC), and what tests have in its
# place, to link (cuda_emulated) and to load (penstock_cuda_emulated). Of each the program sees one symbol.
function(penstock_cuda_plugin name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SRCS;DEPS")
  add_library(${name} MODULE ${arg_SRCS} cuda_kernels_table.cc)
  target_compile_options(${name} PRIVATE ${PENSTOCK_WARNINGS})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${arg_DEPS} cuda_runtime_table)
  target_link_options(${name} PRIVATE -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cuda_plugin.map
                                         -Wl,-z,defs -static-libstdc++ -static-libgcc)
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX LINK_DEPENDS
                        ${CMAKE_CURRENT_SOURCE_DIR}/cuda_plugin.map)
endfunction()

if(PENSTOCK_NVCC)
  penstock_cuda_plugin(penstock_cuda SRCS cuda_plugin_entry.cc
                       DEPS linear_cuda rows_cuda kv_rows_cuda kv_encoding_cuda units_cuda attention_cuda
                            sampling_cuda nccl_table CUDA::cudart)
  # cudart may lie beside it.
  set_target_properties(penstock_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}
                        BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN")
endif()
if(PENSTOCK_CUDA AND PENSTOCK_TESTS)
  set(EMULATED linear_cuda_simt rows_cuda_simt kv_rows_cuda_simt kv_encoding_cuda_simt units_cuda_simt
               attention_cuda_simt sampling_cuda_simt)
  penstock_library(cuda_emulated SRCS cuda_emulated_entry.cc cuda_kernels_table.cc
                   DEPS ${EMULATED} cuda_runtime_table simt_cudart nccl_standin)
  if(NOT PENSTOCK_SANITIZE)
    # What it needs of base is not compiled for shared libraries there.
    get_target_property(standins nccl_standin SOURCES)
    list(APPEND standins cuda_standin.cc cuda_standin_graph.cc cuda_standin_later.cc)
    list(TRANSFORM standins PREPEND ${PROJECT_SOURCE_DIR}/device/)
    penstock_cuda_plugin(penstock_cuda_emulated
                         SRCS cuda_emulated_entry.cc ${standins}
                              ${PROJECT_SOURCE_DIR}/base/check.cc ${PROJECT_SOURCE_DIR}/base/float16.cc
                         DEPS ${EMULATED} simt_cudart absl::strings)
    if(PENSTOCK_NCCL_INCLUDE)
      target_include_directories(penstock_cuda_emulated SYSTEM PRIVATE ${PENSTOCK_NCCL_INCLUDE})
    endif()
  endif()
  if(NOT PENSTOCK_SANITIZE MATCHES "thread")
    penstock_test(cuda_device_test SRCS cuda_graphs_test.cc cuda_kernels_test.cc cuda_tables_test.cc
                                        ${PROJECT_SOURCE_DIR}/device/cuda_device_test.cc
                  DEPS kernels cuda_emulated)
  endif()
endif()
