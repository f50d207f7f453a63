#pragma once

#include "core/device.h"

/// Calls the entry point `f` of the backend that owns `device`: cpu::f(...) or cuda::f(...).
#define SWITCHYARD_DISPATCH(device, f, ...) \
  ((device).is_cuda() ? ::switchyard::cuda::f(__VA_ARGS__) : ::switchyard::cpu::f(__VA_ARGS__))
