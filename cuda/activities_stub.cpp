// Stands in for activities.cpp in a build without CUPTI.

#include "core/error.h"
#include "core/kernels/device.h"

namespace switchyard::cuda {
namespace {

[[noreturn]] void no_cupti() {
  fail(
      "cuda: profiling kernels needs CUPTI, which was not found when this program was built; it is part of the CUDA "
      "Toolkit (cuda-cupti-dev, or extras/CUPTI)");
}

}  // namespace

void record_activities(Device) { no_cupti(); }
std::vector<Activity> take_activities(Device) { no_cupti(); }
void enter_activity_scope(std::uint64_t) { no_cupti(); }
void leave_activity_scope() { no_cupti(); }
std::uint64_t activity_clock() { no_cupti(); }

}  // namespace switchyard::cuda
