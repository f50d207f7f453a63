#pragma once

#include "core/device.h"
#include "core/profiler.h"

/// Calls the entry point `f` of the backend that owns `device`: cpu::f(...) or cuda::f(...). The profiler knows the
/// call by the entry point's name (the scope lives to the end of the full expression).
#define SWITCHYARD_DISPATCH(device, f, ...)           \
  (static_cast<void>(::switchyard::ProfileScope(#f)), \
   (device).is_cuda() ? ::switchyard::cuda::f(__VA_ARGS__) : ::switchyard::cpu::f(__VA_ARGS__))
