# SPDX-License-Identifier: Apache-2.0
# Finds the C++ side of torch without torch's own CMake files, which fail on a CUDA wheel when no CUDA
# toolkit is installed and overwrite the project's CUDA settings.
#
# Looks in LIBTORCH_ROOT, then where WEIR_PYTHON (or the Python of a wheel's build, or .venv, or python3) keeps `torch` (located, not
# imported), then in the system. Reads: LIBTORCH_ROOT, WEIR_PYTHON. Defines:
#   Libtorch::torch   headers (as SYSTEM), c10, torch_cpu, torch, OpenMP
#   Libtorch::cuda    c10_cuda and torch_cuda, only if this torch was built with CUDA
#   Libtorch_VERSION, Libtorch_CUDA

set(WEIR_PYTHON "$ENV{WEIR_PYTHON}" CACHE STRING "Python whose torch is used; empty: .venv, then python3")

set(_libtorch_hints "${LIBTORCH_ROOT}" "$ENV{LIBTORCH_ROOT}")
set(_libtorch_pythons "${WEIR_PYTHON}")
if(SKBUILD)  # pip builds a wheel for this Python
  list(APPEND _libtorch_pythons "${Python_EXECUTABLE}")
endif()
foreach(_python IN LISTS _libtorch_pythons ITEMS "${PROJECT_SOURCE_DIR}/.venv/bin/python" python3)
  if(_python)
    # -E: an isolated build of pip hides the installed packages by PYTHONPATH.
    execute_process(
      COMMAND "${_python}" -E -c
              "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE _libtorch_python_root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND _libtorch_hints "${_libtorch_python_root}")
  endif()
endforeach()
list(REMOVE_ITEM _libtorch_hints "")

find_path(Libtorch_INCLUDE_DIR torch/library.h HINTS ${_libtorch_hints} PATH_SUFFIXES include)
get_filename_component(_libtorch_root "${Libtorch_INCLUDE_DIR}" DIRECTORY)
find_path(Libtorch_API_INCLUDE_DIR torch/torch.h
          HINTS "${Libtorch_INCLUDE_DIR}/torch/csrc/api/include")
foreach(_library IN ITEMS c10 torch_cpu torch c10_cuda torch_cuda)
  find_library(Libtorch_${_library}_LIBRARY ${_library} HINTS "${_libtorch_root}/lib")
endforeach()

foreach(_header IN ITEMS torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
  if(NOT Libtorch_VERSION AND EXISTS "${Libtorch_INCLUDE_DIR}/${_header}")
    file(STRINGS "${Libtorch_INCLUDE_DIR}/${_header}" _libtorch_lines
         REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
    string(REGEX REPLACE "[^0-9;]" "" _libtorch_lines "${_libtorch_lines}")
    string(REPLACE ";" "." Libtorch_VERSION "${_libtorch_lines}")
  endif()
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  Libtorch
  REQUIRED_VARS Libtorch_INCLUDE_DIR Libtorch_API_INCLUDE_DIR Libtorch_c10_LIBRARY
                Libtorch_torch_cpu_LIBRARY Libtorch_torch_LIBRARY
  VERSION_VAR Libtorch_VERSION
  REASON_FAILURE_MESSAGE
    "Looked in LIBTORCH_ROOT, then in the torch of WEIR_PYTHON, .venv and python3, then in the system. `make build` sets up .venv.")

# A torch without CUDA ships the c10/cuda headers, but not this generated one.
set(Libtorch_CUDA FALSE)
if(EXISTS "${Libtorch_INCLUDE_DIR}/c10/cuda/impl/cuda_cmake_macros.h" AND Libtorch_torch_cuda_LIBRARY)
  set(Libtorch_CUDA TRUE)
endif()

if(Libtorch_FOUND AND NOT TARGET Libtorch::torch)
  # at::parallel_for is an inline function with an OpenMP pragma: without -fopenmp it runs on one thread.
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  add_library(Libtorch::torch INTERFACE IMPORTED)
  target_include_directories(Libtorch::torch SYSTEM INTERFACE "${Libtorch_INCLUDE_DIR}"
                                                              "${Libtorch_API_INCLUDE_DIR}")
  target_link_libraries(
    Libtorch::torch INTERFACE "${Libtorch_torch_LIBRARY}" "${Libtorch_torch_cpu_LIBRARY}"
                              "${Libtorch_c10_LIBRARY}")
  # By flag, not by path: torch brings a libgomp with the system's soname, and one runtime must serve both.
  target_compile_options(Libtorch::torch INTERFACE ${OpenMP_CXX_FLAGS})
  target_link_options(Libtorch::torch INTERFACE ${OpenMP_CXX_FLAGS})
  if(Libtorch_CUDA)
    add_library(Libtorch::cuda INTERFACE IMPORTED)
    target_link_libraries(
      Libtorch::cuda
      INTERFACE Libtorch::torch "${Libtorch_c10_cuda_LIBRARY}"
                "-Wl,--push-state,--no-as-needed,${Libtorch_torch_cuda_LIBRARY},--pop-state")
  endif()
endif()
mark_as_advanced(Libtorch_INCLUDE_DIR Libtorch_API_INCLUDE_DIR)
