#pragma once

#include "autograd/variable.h"

namespace switchyard::moe {

/// Minus the entropy of the average selection: sum_e m_e log m_e, where m is the mean over the tokens of
/// softmax(scores); from raw router scores [N, H, E] of all experts, mean over the H slots. A negative scalar; adding
/// it to a loss favours even use. (Csordás et al., 2023, arXiv 2310.10837, section 5.)
Variable entropy_regularizer(const Variable& scores);

}  // namespace switchyard::moe
