#pragma once

#include <cstddef>

#include "cuda/context.h"

namespace switchyard::cuda {

/// Queues a copy from ordinary host memory. Returns without waiting for the device, when `from` may be changed: the
/// bytes travel through a buffer in pinned memory. Copies larger than a training batch go directly and wait.
void upload(const Context& ctx, void* to, const void* from, std::size_t bytes);

}  // namespace switchyard::cuda
