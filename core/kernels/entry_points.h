#pragma once

#include "core/tensor.h"

/// Declares one entry point in both backends with the same signature. Entry points get checked arguments and
/// allocated outputs; checking and allocating is core/ops' work.
#define SWITCHYARD_ENTRY(name, ...) \
  namespace switchyard::cpu {       \
  void name(__VA_ARGS__);           \
  }                                 \
  namespace switchyard::cuda {      \
  void name(__VA_ARGS__);           \
  }
