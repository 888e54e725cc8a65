# SPDX-License-Identifier: Apache-2.0
# The CUDA plug-in: libpenstock_cuda.so, beside the program (PENSTOCK_NVCC), and cuda_emulated, what
# tests link in its place. Of either the program sees one symbol.
if(PENSTOCK_NVCC)
  add_library(penstock_cuda MODULE cuda_plugin_entry.cc cuda_kernels_table.cc)
  target_compile_options(penstock_cuda PRIVATE ${PENSTOCK_WARNINGS})
  target_include_directories(penstock_cuda PRIVATE ${PROJECT_SOURCE_DIR})
  target_link_libraries(penstock_cuda PRIVATE linear_cuda rows_cuda kv_rows_cuda attention_cuda
                                              cuda_runtime_table CUDA::cudart)
  target_link_options(penstock_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,defs -static-libstdc++ -static-libgcc)
  # cudart may lie beside it.
  set_target_properties(penstock_cuda PROPERTIES CXX_VISIBILITY_PRESET hidden LINKER_LANGUAGE CXX
                        LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR} BUILD_RPATH "$ORIGIN"
                        INSTALL_RPATH "$ORIGIN")
endif()
if(PENSTOCK_CUDA)
  penstock_library(cuda_emulated SRCS cuda_emulated_entry.cc cuda_kernels_table.cc
                   DEPS linear_cuda_simt rows_cuda_simt kv_rows_cuda_simt attention_cuda_simt
                        cuda_runtime_table simt_cudart cuda_standin)
  if(PENSTOCK_TESTS AND NOT PENSTOCK_SANITIZE MATCHES "thread")
    penstock_test(cuda_device_test SRCS cuda_tables_test.cc ${PROJECT_SOURCE_DIR}/device/cuda_device_test.cc
                  DEPS kernels cuda_emulated)
  endif()
endif()
