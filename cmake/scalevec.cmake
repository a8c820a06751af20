if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()
# Most of what is here parses, checks, calls torch or writes down; -O2 would take a third longer to compile, and -O3 a
# fifth more than that. Kernels and other loops ask for more by file.
string(REPLACE -O3 -O1 CMAKE_CXX_FLAGS_RELEASE "${CMAKE_CXX_FLAGS_RELEASE}")
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_EXTENSIONS OFF)
if(SCALEVEC_SANITIZE STREQUAL THREAD)
  add_compile_options(-fsanitize=thread -g1)
  add_link_options(-fsanitize=thread)
elseif(SCALEVEC_SANITIZE)
  # Instrumented code confuses that warning.
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1
                      -Wno-maybe-uninitialized)
  add_link_options(-fsanitize=address,undefined)
endif()

# What one build folder or clone has compiled, the next need not. Sources with precompiled headers are refused unless
# ccache is told that their dates do not count. -DCMAKE_CXX_COMPILER_LAUNCHER= switches it off.
find_program(SCALEVEC_CCACHE ccache)
if(SCALEVEC_CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER env CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}
                                  CCACHE_NOHASHDIR=1 ${SCALEVEC_CCACHE})
endif()

# `#include <scalevec/core/address.h>` finds core/address.h, before and after installation.
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/include/scalevec)
foreach(folder core hooks analysis edits trainer)
  file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${folder} ${PROJECT_BINARY_DIR}/include/scalevec/${folder} SYMBOLIC)
endforeach()

# scalevec_add_module(<name> SOURCES <files...> LINK <targets...> [PRECOMPILE <headers...> | PRECOMPILED_BY <name>]
#                     [HOT <files...>])
# Makes scalevec::<name>. Whoever links it gets C++20 and the include path. HOT sources are compiled with -O2.
function(scalevec_add_module name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "PRECOMPILED_BY" "SOURCES;LINK;PRECOMPILE;HOT")
  set(target scalevec_${name})
  add_library(${target} STATIC ${arg_SOURCES})
  add_library(scalevec::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(
    ${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
                     $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wshadow -Wconversion>)
  if(TARGET LibTorch::LibTorch)  # core/parallel.h
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fopenmp>)
  endif()
  # GCC 12 crashes on headers precompiled with another -O.
  set_source_files_properties(${arg_HOT} PROPERTIES COMPILE_OPTIONS $<$<CONFIG:Release>:-O2> SKIP_PRECOMPILE_HEADERS ON)
  target_link_libraries(${target} PUBLIC ${arg_LINK})
  if(arg_PRECOMPILED_BY)
    target_precompile_headers(${target} REUSE_FROM scalevec_${arg_PRECOMPILED_BY})
  elseif(arg_PRECOMPILE)
    list(TRANSFORM arg_PRECOMPILE REPLACE "(.+)" "$<$<COMPILE_LANGUAGE:CXX>:<\\1$<ANGLE-R>>")
    target_precompile_headers(${target} PRIVATE ${arg_PRECOMPILE})
  endif()
  install(TARGETS ${target} EXPORT scalevec-targets)
endfunction()

# A CUDA toolkit is optional: without one, absent-device twins are built.
macro(scalevec_enable_cuda)
  set(SCALEVEC_HAS_CUDA OFF)
  if(SCALEVEC_CUDA)
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80 90)
      endif()
      # The one that LibTorch loads already.
      set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
      # CMake 3.25 does not know nvcc's C++20.
      string(APPEND CMAKE_CUDA_FLAGS " -std=c++20")
      enable_language(CUDA)
      find_package(CUDAToolkit REQUIRED)
      # A module that asks for another runtime than LibTorch brings would not load where the toolkit is missing.
      set(torch_cuda "")
      if(EXISTS ${LIBTORCH_ROOT}/version.py)
        file(STRINGS ${LIBTORCH_ROOT}/version.py torch_cuda REGEX "^cuda.*'[0-9]+\\.")
        string(REGEX REPLACE ".*'([0-9]+)\\..*" "\\1" torch_cuda "${torch_cuda}")
      endif()
      if(torch_cuda STREQUAL CUDAToolkit_VERSION_MAJOR)
        set(SCALEVEC_HAS_CUDA ON)
      elseif(NOT SCALEVEC_CUDA STREQUAL AUTO)
        message(FATAL_ERROR "the CUDA toolkit is version ${CUDAToolkit_VERSION}, LibTorch's is '${torch_cuda}': they must agree")
      endif()
    elseif(NOT SCALEVEC_CUDA STREQUAL AUTO)
      message(FATAL_ERROR "SCALEVEC_CUDA is ${SCALEVEC_CUDA}, but no CUDA compiler works here: put nvcc on the PATH, "
                          "name it in CUDACXX, or leave SCALEVEC_CUDA at AUTO")
    endif()
  endif()
  message(STATUS "scalevec: CUDA kernels ${SCALEVEC_HAS_CUDA}")
endmacro()
