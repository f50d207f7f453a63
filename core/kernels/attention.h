#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/attention.h"

/// Shapes as in core/ops/attention.h. out is dense. log_normalizer [B, H, T] in the compute dtype.
SWITCHYARD_ENTRY(attention, const Tensor& query, const Tensor& key, const Tensor& value,
                 const ops::AttentionOptions& options, const Tensor& out, const Tensor& log_normalizer)
/// dposition_key is undefined where options.position_key is. All gradients are dense and overwritten whole.
SWITCHYARD_ENTRY(attention_backward, const Tensor& dout, const Tensor& query, const Tensor& key, const Tensor& value,
                 const Tensor& out, const Tensor& log_normalizer, const ops::AttentionOptions& options,
                 const Tensor& dquery, const Tensor& dkey, const Tensor& dvalue, const Tensor& dposition_key)
/// probabilities [B, H, T, S] in the compute dtype, before dropout.
SWITCHYARD_ENTRY(attention_probabilities, const Tensor& query, const Tensor& key, const ops::AttentionOptions& options,
                 const Tensor& probabilities)
/// x and out [B, T, H, d] with stride 1 on d; out may be x itself. cosine, sine [positions, r], r even and at most d;
/// token t has position first_position + t. inverse rotates back, which is the gradient.
SWITCHYARD_ENTRY(rope, const Tensor& x, const Tensor& cosine, const Tensor& sine, std::int64_t first_position,
                 bool inverse, const Tensor& out)
