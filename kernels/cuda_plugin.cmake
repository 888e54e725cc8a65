# SPDX-License-Identifier: Apache-2.0
# The CUDA plug-in: libpenstock_cuda.so, beside the program (PENSTOCK_NVCC), and what tests have in its
# place, to link (cuda_emulated) and to load (penstock_cuda_emulated). Of each the program sees one symbol.
# And nvcc_cudart: a libcudart.so with the emulated kernels, with which nvcc's plug-in runs as it is.
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
                       DEPS linear_cuda rows_cuda kv_rows_cuda kv_encoding_cuda kv_split_cuda units_cuda attention_cuda
                            sampling_cuda unpack_cuda nccl_table cublas_lt_table cudnn_table CUDA::cudart)
  # cudart may lie beside it.
  set_target_properties(penstock_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}
                        BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN")
endif()
if(PENSTOCK_CUDA AND PENSTOCK_TESTS)
  set(EMULATED linear_cuda_simt rows_cuda_simt kv_rows_cuda_simt kv_encoding_cuda_simt kv_split_cuda_simt
               units_cuda_simt attention_cuda_simt sampling_cuda_simt unpack_cuda_simt)
  penstock_library(cuda_emulated SRCS cuda_emulated_entry.cc cuda_kernels_table.cc
                   DEPS ${EMULATED} cuda_runtime_table simt_cudart nccl_standin cublas_lt_standin cudnn_standin)
  if(NOT PENSTOCK_SANITIZE)
    # What it needs of base is not compiled for shared libraries there.
    get_target_property(standins nccl_standin SOURCES)
    get_target_property(lt_standins cublas_lt_standin SOURCES)
    get_target_property(cudnn_standins cudnn_standin SOURCES)
    list(APPEND standins ${lt_standins} ${cudnn_standins} cuda_standin.cc cuda_standin_graph.cc cuda_standin_later.cc
                cuda_standin_errors.cc cuda_standin_machine.cc)
    list(TRANSFORM standins PREPEND ${PROJECT_SOURCE_DIR}/device/)
    list(APPEND standins ${PROJECT_SOURCE_DIR}/base/check.cc ${PROJECT_SOURCE_DIR}/base/float16.cc)
    penstock_cuda_plugin(penstock_cuda_emulated SRCS cuda_emulated_entry.cc ${standins}
                         DEPS ${EMULATED} simt_cudart absl::strings)
    if(PENSTOCK_NCCL_INCLUDE)
      target_include_directories(penstock_cuda_emulated SYSTEM PRIVATE ${PENSTOCK_NCCL_INCLUDE})
    endif()
    if(PENSTOCK_CUDNN_INCLUDE)
      target_include_directories(penstock_cuda_emulated SYSTEM PRIVATE ${PENSTOCK_CUDNN_INCLUDE})
    endif()
  endif()
  if(PENSTOCK_NVCC)
    # In a folder for LD_LIBRARY_PATH, and as the other libraries that the plug-in opens, too: all in one,
    # since the one's work waits for the other's.
    set(folder ${CMAKE_CURRENT_BINARY_DIR}/nvcc_cudart)
    set(major ${CUDAToolkit_VERSION_MAJOR})
    file(CONFIGURE OUTPUT nvcc_cudart.map
         CONTENT "libcudart.so.${major} { global: cuda*; __cuda*; nccl*; cublasLt*; cudnn*; local: *; };\n")
    set(whole ${EMULATED})  # Nothing calls their launchers.
    list(TRANSFORM whole REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>")
    add_library(nvcc_cudart SHARED simt_nvcc_cudart.cc ${standins} ${whole})
    target_compile_options(nvcc_cudart PRIVATE ${PENSTOCK_WARNINGS})
    target_include_directories(nvcc_cudart PRIVATE ${PROJECT_SOURCE_DIR})
    foreach(include PENSTOCK_NCCL_INCLUDE PENSTOCK_CUDNN_INCLUDE)
      if(${include})
        target_include_directories(nvcc_cudart SYSTEM PRIVATE ${${include}})
      endif()
    endforeach()
    target_link_libraries(nvcc_cudart PRIVATE simt absl::strings)
    target_link_options(nvcc_cudart PRIVATE -Wl,-z,defs -static-libstdc++ -static-libgcc
                        -Wl,--version-script=${CMAKE_CURRENT_BINARY_DIR}/nvcc_cudart.map)
    set_target_properties(nvcc_cudart PROPERTIES OUTPUT_NAME cudart SOVERSION ${major} LIBRARY_OUTPUT_DIRECTORY ${folder})
    foreach(name libnccl.so.2 libcublasLt.so.13 libcudnn_graph.so.9)
      add_custom_command(TARGET nvcc_cudart POST_BUILD VERBATIM COMMAND
                         ${CMAKE_COMMAND} -E create_symlink libcudart.so.${major} ${folder}/${name})
    endforeach()
  endif()
  if(NOT PENSTOCK_SANITIZE MATCHES "thread")
    if(PENSTOCK_CUDNN_INCLUDE)
      penstock_test(fast_attention_test SRCS fast_attention_test.cc DEPS kernels cuda_emulated)
    endif()
    penstock_test(cuda_device_test SRCS fast_products_test.cc cuda_graphs_test.cc cuda_kernels_test.cc cuda_tables_test.cc
                                        ${PROJECT_SOURCE_DIR}/device/cuda_device_test.cc
                  DEPS kernels cuda_emulated)
  endif()
endif()
