# Finds the LibTorch inside the PyTorch wheel: torch_cpu and c10, and torch + torch_python for the bindings.
# The wheel's own TorchConfig.cmake needs a CUDA toolkit and drags CUDA's headers into every source.
#
#   LibTorch::LibTorch     headers, c10, torch_cpu, torch
#   LibTorch::Python       the above, torch_python, and the pybind11 that torch ships
#
# LIBTORCH_ROOT: the `torch` folder of the wheel; asked of Python when unset. Installed with scalevec's own package.
if(NOT LIBTORCH_ROOT)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  # Never cached: a build folder may meet another environment the next time.
  execute_process(COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/find_torch.py OUTPUT_VARIABLE LIBTORCH_ROOT)
endif()

find_path(LIBTORCH_INCLUDE_DIR ATen/core/Tensor.h PATHS ${LIBTORCH_ROOT}/include NO_DEFAULT_PATH NO_CACHE)
foreach(lib c10 torch_cpu torch torch_python)
  find_library(LIBTORCH_${lib}_LIBRARY ${lib} PATHS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH NO_CACHE)
endforeach()
if(EXISTS "${LIBTORCH_ROOT}/version.py")
  file(STRINGS "${LIBTORCH_ROOT}/version.py" libtorch_version_line REGEX "^__version__")
  string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" LibTorch_VERSION "${libtorch_version_line}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch REQUIRED_VARS LIBTORCH_INCLUDE_DIR LIBTORCH_c10_LIBRARY LIBTORCH_torch_cpu_LIBRARY LIBTORCH_torch_LIBRARY
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE
    "${Python3_EXECUTABLE} sees no such torch. Install it first: pip install torch==2.11.0. \
If it is installed, but hidden from an isolated build: pip install --no-build-isolation . (or set LIBTORCH_ROOT)")

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  # Last, because the wheel ships headers of its own {fmt}, whose library it does not ship.
  target_compile_options(LibTorch::LibTorch INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-idirafter ${LIBTORCH_INCLUDE_DIR}>")
  # Of loops compiled with -fopenmp. At run time it is the wheel's libgomp.so.1: the threads are torch's own.
  target_link_libraries(LibTorch::LibTorch INTERFACE gomp)
  # Per-operator headers only: ATen's whole operator list costs four times the parse.
  target_compile_definitions(LibTorch::LibTorch INTERFACE TORCH_ASSERT_ONLY_METHOD_OPERATORS AT_PER_OPERATOR_HEADERS)
  # The wheel's libraries export pieces of an old std::filesystem that crash; the real one must come first.
  target_link_libraries(LibTorch::LibTorch INTERFACE stdc++ ${LIBTORCH_torch_LIBRARY} ${LIBTORCH_torch_cpu_LIBRARY} ${LIBTORCH_c10_LIBRARY})
  # The wheel keeps CUDA's own libraries in sibling folders that its libraries find by RUNPATH; the linker need not.
  # A Python module needs neither: its Python symbols stay open, and `import torch` has loaded the libraries.
  set(libtorch_program "$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>")
  target_link_options(
    LibTorch::LibTorch INTERFACE "$<${libtorch_program}:-Wl,--unresolved-symbols=ignore-in-shared-libs>"
    "$<${libtorch_program}:-Wl,-rpath,${LIBTORCH_ROOT}/lib>")
endif()
if(LibTorch_FOUND AND LIBTORCH_torch_python_LIBRARY AND NOT TARGET LibTorch::Python)
  add_library(LibTorch::Python INTERFACE IMPORTED)
  target_link_libraries(LibTorch::Python INTERFACE LibTorch::LibTorch ${LIBTORCH_torch_python_LIBRARY})
endif()
