#include "core/rng.h"

#include <map>

#include "core/kernels/random.h"
#include "core/ops/dispatch.h"

namespace switchyard {
namespace {

std::uint64_t current_seed = 0;

std::map<int, Generator>& generators() {
  static std::map<int, Generator> by_device;  // -1 is the CPU, others are GPU indices
  return by_device;
}

}  // namespace

Generator::Generator(std::uint64_t seed, Device device) : seed_(seed), base_(Tensor::zeros({1}, DType::i64, device)) {}

RandomStream Generator::next(std::int64_t numel) {
  const RandomStream stream{seed_, base_, offset_};
  offset_ += static_cast<std::uint64_t>(numel + 3) / 4;
  return stream;
}

void Generator::end_step() {
  if (offset_ > 0) SWITCHYARD_DISPATCH(base_.device(), advance_counter, base_, static_cast<std::int64_t>(offset_));
  offset_ = 0;
}

GeneratorState Generator::state() const {
  return {seed_, static_cast<std::uint64_t>(base_.item<std::int64_t>()) + offset_};
}

void Generator::set_state(const GeneratorState& state) {
  seed_ = state.seed;
  base_.copy_from(Tensor::from<std::int64_t>({static_cast<std::int64_t>(state.position)}, {1}));
  offset_ = 0;
}

Generator& default_generator(Device device) {
  const int key = device.is_cuda() ? device.index : -1;
  return generators().try_emplace(key, current_seed, device).first->second;
}

void seed_all(std::uint64_t seed) {
  current_seed = seed;
  for (auto& [key, generator] : generators()) generator.set_state({seed, 0});
}

}  // namespace switchyard
