# Compiler flags. switchyard::warnings is for our own targets only; everything else here holds for the whole build.

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 12)
  message(FATAL_ERROR "g++ 12 or newer is needed, and ${CMAKE_CXX_COMPILER} is ${CMAKE_CXX_COMPILER_VERSION}: "
                      "give another with -DCMAKE_CXX_COMPILER=<path>")
endif()

add_library(switchyard_warnings INTERFACE)
add_library(switchyard::warnings ALIAS switchyard_warnings)
# The heuristics that run inside the optimiser report false positives that change with the compiler's version and flags:
# they stay warnings, so that a newer compiler does not break somebody's first build; those that g++ 12 and 13 are known to
# raise inside Boost and std::string are off.
set(switchyard_soft_warnings
    -Wno-error=array-bounds -Wno-stringop-overflow -Wno-stringop-overread
    -Wno-error=maybe-uninitialized -Wno-restrict -Wno-error=free-nonheap-object -Wno-error=nonnull)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
  list(APPEND switchyard_soft_warnings -Wno-error=dangling-reference -Wno-error=overloaded-virtual)
endif()
target_compile_options(
  switchyard_warnings
  INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Werror>
            $<$<COMPILE_LANG_AND_ID:CXX,GNU>:${switchyard_soft_warnings}>
            $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra -Werror=all-warnings>)

# The two assumptions that let the loops vectorise and that no code here contradicts: nobody reads errno after a maths
# function, and nobody traps floating-point exceptions. NaN, Inf and signed zeros keep their meaning.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fno-math-errno> $<$<COMPILE_LANGUAGE:CXX>:-fno-trapping-math>)

if(SWITCHYARD_NATIVE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-march=native>)
  switchyard_report(IN "processor" "this machine's own (-march=native), -DSWITCHYARD_NATIVE=OFF gives programs to carry elsewhere")
else()
  switchyard_report(IN "processor" "any ${CMAKE_SYSTEM_PROCESSOR} (-DSWITCHYARD_NATIVE=ON makes it faster on this machine)")
endif()

if(SWITCHYARD_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=address,undefined)
  switchyard_report(IN "sanitizers" "AddressSanitizer and UndefinedBehaviorSanitizer")
endif()

find_program(CCACHE_PROGRAM ccache)
mark_as_advanced(CCACHE_PROGRAM)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

# Not lld: programs linked by lld 14 (Debian 12) abort where an exception passes through some of our functions.
find_program(SWITCHYARD_LINKER_mold mold)
mark_as_advanced(SWITCHYARD_LINKER_mold)
if(SWITCHYARD_LINKER_mold)
  add_link_options($<$<LINK_LANGUAGE:CXX>:-fuse-ld=mold>)
endif()
