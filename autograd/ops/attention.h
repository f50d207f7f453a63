#pragma once

#include "autograd/variable.h"
#include "core/ops/attention.h"

namespace switchyard {

/// softmax(scale q k^T + masks) v per head; shapes and options as in ops::attention. `position_key` [R, H, d], or
/// undefined, takes the place of options.position_key and gets a gradient. With options.dropout > 0 the stream is drawn
/// from the device's default generator.
Variable attention(const Variable& query, const Variable& key, const Variable& value, ops::AttentionOptions options,
                   const Variable& position_key = {});
/// Rotary position encoding of x [B, T, H, d]; token t has position first_position + t. With `overwrite` x's own
/// elements turn, which saves a pass: nothing may read x afterwards, an op that saved it included.
Variable rope(const Variable& x, const ops::RopeTables& tables, std::int64_t first_position = 0,
              bool overwrite = false);

}  // namespace switchyard
