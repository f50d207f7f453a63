# Puts the CUDA backend into switchyard_core, or its stand-in that throws a clear error. Core and backend link as one,
# because each calls the other. Included at file scope, where a language can be enabled.

file(GLOB_RECURSE cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/*.cu)
file(GLOB_RECURSE cuda_host_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/*.cpp)
set(cuda_stub ${PROJECT_SOURCE_DIR}/cuda/stub.cpp)
list(REMOVE_ITEM cuda_host_sources ${cuda_stub})

set(SWITCHYARD_CUDA_ARCHITECTURES "80;90a" CACHE STRING "GPU architectures to build for; 90a is Hopper with all it has")
set(build_cuda OFF)
if(NOT SWITCHYARD_CUDA)
  switchyard_report(OUT "CUDA" "switched off, the cuda preset builds it (make cuda)")
else()
  set(CMAKE_CUDA_ARCHITECTURES OFF) # the --generate-code flags below say it: CMake 3.25 does not know 90a
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND NOT SWITCHYARD_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "SWITCHYARD_CUDA=ON but nvcc was not found: install the CUDA Toolkit and put its bin folder in PATH")
  elseif(NOT CMAKE_CUDA_COMPILER)
    switchyard_report(OUT "CUDA" "nvcc not found (install the CUDA Toolkit and put its bin folder in PATH)")
  elseif(NOT cuda_kernels)
    switchyard_report(OUT "CUDA" "cuda/ holds no kernels yet")
  else()
    set(build_cuda ON)
  endif()
endif()

if(build_cuda)
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION) # CMake 3.25 does not know that nvcc has C++20
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  find_package(CUDAToolkit REQUIRED)
  target_sources(switchyard_core PRIVATE ${cuda_kernels} ${cuda_host_sources})
  set_target_properties(switchyard_core PROPERTIES CUDA_ARCHITECTURES OFF)
  target_compile_options(switchyard_core PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
  foreach(architecture IN LISTS SWITCHYARD_CUDA_ARCHITECTURES)
    # Code for 80 also goes in as PTX, which the driver compiles for any newer GPU; code for 90a runs on Hopper only.
    set(code sm_${architecture})
    if(architecture MATCHES "^[0-9]+$")
      set(code "[sm_${architecture},compute_${architecture}]")
    endif()
    target_compile_options(
      switchyard_core
      PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:--generate-code=arch=compute_${architecture},code=${code}>")
  endforeach()
  target_link_libraries(switchyard_core PUBLIC CUDA::cudart CUDA::cublas CUDA::cublasLt)
  set(SWITCHYARD_CUDA_BUILT ON)
  switchyard_report(IN "CUDA" "${CUDAToolkit_VERSION}, for ${SWITCHYARD_CUDA_ARCHITECTURES}")
elseif(EXISTS ${cuda_stub})
  target_sources(switchyard_core PRIVATE ${cuda_stub})
endif()
