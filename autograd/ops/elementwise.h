#pragma once

#include "autograd/variable.h"
#include "core/ops/elementwise.h"

namespace switchyard {

/// Elementwise op(x); see ops::Unary for the functions.
Variable unary(ops::Unary op, const Variable& x);
/// An activation by name, as configurations use it; identity returns x itself.
Variable activate(ops::Activation activation, const Variable& x);
Variable exp(const Variable& x);
Variable log(const Variable& x);
Variable relu(const Variable& x);
Variable sigmoid(const Variable& x);
Variable tanh(const Variable& x);

// Broadcasting arithmetic; both sides of one dtype.
Variable operator+(const Variable& a, const Variable& b);
Variable operator-(const Variable& a, const Variable& b);
Variable operator*(const Variable& a, const Variable& b);
Variable operator/(const Variable& a, const Variable& b);
Variable operator*(const Variable& x, double factor);
Variable operator*(double factor, const Variable& x);
Variable operator+(const Variable& x, double term);
Variable operator-(const Variable& x);

/// condition ? a : b; condition is bool; all broadcast together.
Variable where(const Tensor& condition, const Variable& a, const Variable& b);
/// Zeroes elements with the given probability and divides the rest by 1 - probability; draws from the device's default
/// generator. Returns x itself for probability 0.
Variable dropout(const Variable& x, double probability);
/// x converted to another floating dtype; the gradient is converted back.
Variable cast(const Variable& x, DType dtype);

}  // namespace switchyard
