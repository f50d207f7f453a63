#pragma once

#include <cstdint>

#include "core/ops/elementwise.h"

namespace switchyard::cpu {

/// out[i] = f(x[i]) for i below count; out may be x.
template <class A>
using UnaryFunction = void (*)(std::int64_t count, A* out, const A* x);

/// For kernels that apply a function on their way to numbers that are no tensor. A: float, double.
template <class A>
UnaryFunction<A> unary_function(ops::Unary op);

}  // namespace switchyard::cpu
