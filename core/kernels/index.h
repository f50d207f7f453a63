#pragma once

#include "core/kernels/entry_points.h"

/// out[i] = table[ids[i]]. table [v, d], ids i64 [n] with 0 <= id < v, out [n, d], all dense.
SWITCHYARD_ENTRY(embedding, const Tensor& table, const Tensor& ids, const Tensor& out)
/// dtable[v] = sum of the rows of dy whose id is v, in row order. dtable is overwritten whole.
SWITCHYARD_ENTRY(embedding_backward, const Tensor& dy, const Tensor& ids, const Tensor& dtable)
/// out[r, j] = x[r, index[r, j]]. x [n, d], index i32 [n, k], out [n, k], all dense.
SWITCHYARD_ENTRY(gather_last, const Tensor& x, const Tensor& index, const Tensor& out)
/// dx[r, index[r, j]] += dy[r, j], other elements 0. dx is overwritten whole.
SWITCHYARD_ENTRY(gather_last_backward, const Tensor& dy, const Tensor& index, const Tensor& dx)
