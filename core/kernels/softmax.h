#pragma once

#include "core/kernels/entry_points.h"

// Over the last axis of dense [n, d] tensors, computed in float or double with the row maximum subtracted.

SWITCHYARD_ENTRY(softmax, const Tensor& x, const Tensor& y)
SWITCHYARD_ENTRY(softmax_backward, const Tensor& dy, const Tensor& y, const Tensor& dx)
SWITCHYARD_ENTRY(log_softmax, const Tensor& x, const Tensor& y)
SWITCHYARD_ENTRY(log_softmax_backward, const Tensor& dy, const Tensor& y, const Tensor& dx)
/// y [n].
SWITCHYARD_ENTRY(logsumexp, const Tensor& x, const Tensor& y)
