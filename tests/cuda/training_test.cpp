// Whole models on the GPU: the same losses and weights as on the CPU, from the same seed.

#include "moe/language_model.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;

moe::LanguageModelConfig small_model(moe::PositionKind position) {
  moe::LanguageModelConfig config;
  config.vocabulary_size = 96;
  config.width = 48;
  config.layers = 2;
  config.context = 24;
  config.dropout = 0.1;
  config.position = position;
  config.attention.heads = 2;
  config.attention.head_width = 16;
  config.attention.experts = 4;
  config.attention.k = 2;
  config.attention.expert_dropout = 0.1;
  config.feedforward.experts = 8;
  config.feedforward.expert_width = 24;
  config.feedforward.k = 2;
  config.feedforward.entropy_regularizer = 1e-3;
  return config;
}

struct Trained {
  std::vector<double> losses;
  std::vector<Tensor> parameters;
};

Trained train(const moe::LanguageModelConfig& config, Device device, DType dtype, int steps) {
  seed_all(11);
  Generator generator(5);
  const auto model = moe::build_language_model(config, generator);
  model->to(dtype);
  model->to(device);
  nn::AdamW optimizer(nn::parameter_groups(model->named_parameters(), 0.01), {.learning_rate = 2e-3});
  const Tensor tokens = random_tensor({4, config.context + 1}, 9, DType::i64, 0, 95).to(device);
  Trained result;
  for (int step = 0; step < steps; ++step) {
    const auto loss = model->loss(tokens.slice(1, 0, config.context), tokens.slice(1, 1, config.context + 1));
    optimizer.zero_grad();
    loss.total.backward();
    optimizer.step(nn::clip_gradients(model->parameters(), 0.25).factor);
    default_generator(device).end_step();
    result.losses.push_back(loss.total.item<double>());
  }
  for (const Variable& p : model->parameters()) result.parameters.push_back(p.data().to(Device::cpu()));
  return result;
}

TEST(CudaTraining, FollowsTheCpuStepByStep) {
  SKIP_WITHOUT_GPU();
  for (const auto position : {moe::PositionKind::rope, moe::PositionKind::xl})
    for (const DType dtype : {DType::f64, DType::f32}) {
      const auto config = small_model(position);
      const Trained cpu = train(config, Device::cpu(), dtype, 10), gpu = train(config, Device::cuda(), dtype, 10);
      for (std::size_t i = 0; i < cpu.losses.size(); ++i)
        EXPECT_NEAR(gpu.losses[i], cpu.losses[i], dtype == DType::f64 ? 1e-9 : 1e-4) << "step " << i;
      if (dtype != DType::f64) continue;
      for (std::size_t i = 0; i < cpu.parameters.size(); ++i) EXPECT_CLOSE(gpu.parameters[i], cpu.parameters[i], 1e-8);
    }
}

TEST(CudaTraining, ASeedGivesTheSameInitialWeights) {
  SKIP_WITHOUT_GPU();
  const auto config = small_model(moe::PositionKind::xl);
  const auto weights = [&](Device device) {
    Generator generator(5);
    set_default_device(device);
    const auto model = moe::build_language_model(config, generator);
    set_default_device(Device::cpu());
    return model->parameters();
  };
  const Variables cpu = weights(Device::cpu()), gpu = weights(Device::cuda());
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    EXPECT_EQ(gpu[i].device(), Device::cuda());
    EXPECT_EQ(gpu[i].data().to_vector<float>(), cpu[i].data().to_vector<float>());
  }
}

TEST(CudaTraining, LearnsInBf16AndRepeatsItself) {
  SKIP_WITHOUT_GPU();
  const auto config = small_model(moe::PositionKind::rope);
  const Trained one = train(config, Device::cuda(), DType::bf16, 60),
                two = train(config, Device::cuda(), DType::bf16, 60);
  EXPECT_EQ(one.losses, two.losses);
  EXPECT_LT(one.losses.back(), one.losses.front() - 0.5);
}

TEST(CudaTraining, PeakMemoryDoesNotGrowWithSteps) {
  SKIP_WITHOUT_GPU();
  const auto config = small_model(moe::PositionKind::rope);
  train(config, Device::cuda(), DType::f32, 2);
  reset_peak_memory(Device::cuda());
  train(config, Device::cuda(), DType::f32, 2);
  const std::size_t peak = memory_statistics(Device::cuda()).peak_bytes;
  train(config, Device::cuda(), DType::f32, 20);
  EXPECT_EQ(memory_statistics(Device::cuda()).peak_bytes, peak);
}

}  // namespace
}  // namespace switchyard
