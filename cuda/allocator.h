#pragma once

#include <cstddef>

#include "core/device.h"

namespace switchyard::cuda {

/// From here to end_recording, memory on the device comes from a new pool, whose number is returned: a graph writes to
/// those addresses at every replay, so other work must not get them. What lies idle joins the pool, so that recording
/// seldom asks the driver for memory.
int begin_recording(Device device);
/// Ends it. Returns how much more memory the recorded work had in use at once than it leaves in use.
std::size_t end_recording(Device device);
/// Undoes begin_recording, when the graph is gone or did not come about: its pool becomes ordinary memory again, and
/// with the last one, so does what was set aside.
void forget_recording(Device device, int pool) noexcept;
/// Tells the statistics that a graph needing `bytes` runs.
void count_replay(Device device, std::size_t bytes);

}  // namespace switchyard::cuda
