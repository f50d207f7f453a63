// Stands in for the CUDA backend in a build without it: whoever asks for a GPU gets one clear line. An entry point that
// is declared in core/kernels/ and missing here is a link error.

#include "core/error.h"
#include "core/kernels/attention.h"
#include "core/kernels/copy.h"
#include "core/kernels/decode_experts.h"
#include "core/kernels/device.h"
#include "core/kernels/elementwise.h"
#include "core/kernels/expert_matmul.h"
#include "core/kernels/index.h"
#include "core/kernels/loss.h"
#include "core/kernels/masked_feed_forward.h"
#include "core/kernels/matmul.h"
#include "core/kernels/norm.h"
#include "core/kernels/optim.h"
#include "core/kernels/random.h"
#include "core/kernels/reduce.h"
#include "core/kernels/routing.h"
#include "core/kernels/softmax.h"

namespace switchyard::cuda {
namespace {

[[noreturn]] void no_backend(const char* call) {
  fail("cuda: ", call, " needs a GPU build; configure with -DSWITCHYARD_CUDA=ON (make cuda)");
}

using T = const Tensor&;

}  // namespace

#define SWITCHYARD_ABSENT(name, ...) \
  void name(__VA_ARGS__) { no_backend(#name); }

// device.h
int device_count() { return 0; }
void* allocate(std::size_t, Device) { no_backend("allocate"); }
void deallocate(void*, std::size_t, Device) noexcept {}  // nothing was ever allocated
MemoryStatistics memory_statistics(Device) { no_backend("memory_statistics"); }
SWITCHYARD_ABSENT(reset_peak_memory, Device)
SWITCHYARD_ABSENT(copy_bytes, void*, Device, const void*, Device, std::size_t)
SWITCHYARD_ABSENT(synchronize, Device)
void* record_graph(Device, const std::function<void()>&) { no_backend("record_graph"); }
SWITCHYARD_ABSENT(launch_graph, void*, Device)
void destroy_graph(void*, Device) noexcept {}  // nothing was ever recorded
SWITCHYARD_ABSENT(record_activities, Device)
std::vector<Activity> take_activities(Device) { no_backend("take_activities"); }
SWITCHYARD_ABSENT(enter_activity_scope, std::uint64_t)
void leave_activity_scope() { no_backend("leave_activity_scope"); }
std::uint64_t activity_clock() { no_backend("activity_clock"); }

// attention.h
SWITCHYARD_ABSENT(attention, T, T, T, const ops::AttentionOptions&, T, T)
SWITCHYARD_ABSENT(attention_backward, T, T, T, T, T, T, const ops::AttentionOptions&, T, T, T, T)
SWITCHYARD_ABSENT(attention_probabilities, T, T, const ops::AttentionOptions&, T)
SWITCHYARD_ABSENT(rope, T, T, T, std::int64_t, bool, T)

// copy.h
SWITCHYARD_ABSENT(copy, T, T)
SWITCHYARD_ABSENT(fill, T, double)

// decode_experts.h
SWITCHYARD_ABSENT(decode_masked, T, const ops::ExpertLayer&, T, ops::Activation, T)
SWITCHYARD_ABSENT(decode_routed, T, const ops::ExpertLayer&, const ops::ExpertRouter&, ops::Activation, T, T, T)

// elementwise.h
SWITCHYARD_ABSENT(unary, ops::Unary, T, T)
SWITCHYARD_ABSENT(unary_backward, ops::Unary, T, T, T)
SWITCHYARD_ABSENT(binary, ops::Binary, T, T, T)
SWITCHYARD_ABSENT(affine, T, double, double, T)
SWITCHYARD_ABSENT(where, T, T, T, T)
SWITCHYARD_ABSENT(accumulate, T, T, double)

// expert_matmul.h
SWITCHYARD_ABSENT(expert_matmul, T, T, T, T, const ops::RoutingPlan&, const ops::ExpertMatmulOptions&, T)
SWITCHYARD_ABSENT(expert_matmul_input_backward, T, T, T, T, T, const ops::RoutingPlan&, const ops::ExpertMatmulOptions&,
                  T, T)
SWITCHYARD_ABSENT(expert_matmul_weight_backward, T, T, T, const ops::RoutingPlan&, const ops::ExpertMatmulOptions&, T,
                  T)

// index.h
SWITCHYARD_ABSENT(embedding, T, T, T)
SWITCHYARD_ABSENT(embedding_backward, T, T, T)
SWITCHYARD_ABSENT(gather_last, T, T, T)
SWITCHYARD_ABSENT(gather_last_backward, T, T, T)

// loss.h
SWITCHYARD_ABSENT(cross_entropy, T, T, std::int64_t, T, T, T)
SWITCHYARD_ABSENT(inverse_target_count, T, std::int64_t, T)

// masked_feed_forward.h
bool block_feed_forward_fits(T, const ops::ExpertLayer&, ops::Activation) { no_backend("block_feed_forward_fits"); }
SWITCHYARD_ABSENT(block_feed_forward, T, const ops::ExpertLayer&, T, ops::Activation, T, T)
SWITCHYARD_ABSENT(keep_chosen, T, T)

// matmul.h
SWITCHYARD_ABSENT(matmul, T, T, T, double, double)
SWITCHYARD_ABSENT(linear, T, T, T, ops::Activation, T)

// norm.h
SWITCHYARD_ABSENT(layer_norm, T, T, T, T, double, T, T, T, T)
SWITCHYARD_ABSENT(layer_norm_backward, T, T, T, T, T, T, T, T, T)
SWITCHYARD_ABSENT(rms_norm, T, T, T, double, T, T, T)
SWITCHYARD_ABSENT(rms_norm_backward, T, T, T, T, T, T, T)

// optim.h
SWITCHYARD_ABSENT(adamw, const std::vector<ops::AdamWSlot>&, T, T, T, double, double, double)
SWITCHYARD_ABSENT(sgd, const std::vector<ops::SgdSlot>&, T, T, double)
SWITCHYARD_ABSENT(global_norm, const std::vector<Tensor>&, T)
SWITCHYARD_ABSENT(clip_factor, T, double, T)

// random.h
SWITCHYARD_ABSENT(advance_counter, T, std::int64_t)
SWITCHYARD_ABSENT(uniform, const RandomStream&, double, double, T)
SWITCHYARD_ABSENT(bernoulli, const RandomStream&, double, T)
SWITCHYARD_ABSENT(dropout, T, const RandomStream&, double, T)

// reduce.h
SWITCHYARD_ABSENT(reduce, ops::Reduction, T, T)
SWITCHYARD_ABSENT(argmax, T, T)
SWITCHYARD_ABSENT(count_nonfinite, T, T)

// routing.h
SWITCHYARD_ABSENT(top_k, T, T, T)
SWITCHYARD_ABSENT(select_share, T, double, T)
SWITCHYARD_ABSENT(select_near_maximum, T, double, T)
SWITCHYARD_ABSENT(expert_gates, T, T, ops::GateFunction, T)
SWITCHYARD_ABSENT(expert_gates_backward, T, T, T, ops::GateFunction, T)
SWITCHYARD_ABSENT(mean_selection, T, T, T)
SWITCHYARD_ABSENT(mean_selection_backward, T, T, T, T)
SWITCHYARD_ABSENT(build_routing_plan, T, T, const ops::RoutingPlan&)

// softmax.h
SWITCHYARD_ABSENT(softmax, T, T)
SWITCHYARD_ABSENT(softmax_backward, T, T, T)
SWITCHYARD_ABSENT(log_softmax, T, T)
SWITCHYARD_ABSENT(log_softmax_backward, T, T, T)
SWITCHYARD_ABSENT(logsumexp, T, T)

}  // namespace switchyard::cuda
