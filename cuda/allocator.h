#pragma once

#include <cstddef>

#include "core/device.h"

namespace switchyard::cuda {

// What recording graphs asks of the device's Arena; core/arena.h says what each does.
int begin_recording(Device device);
std::size_t end_recording(Device device);
void forget_recording(Device device, int pool) noexcept;
void count_replay(Device device, std::size_t bytes);

}  // namespace switchyard::cuda
