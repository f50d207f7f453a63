// Recorded work: replays compute what the work computes, with what changed in between.

#include "core/graph.h"

#include <optional>

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/ops/random.h"
#include "tests/cuda/parity.h"

namespace switchyard {
namespace {

using namespace testing;

TEST(Graph, NeedsAGpu) {
  EXPECT_ERROR(DeviceGraph(Device::cpu(), [] {}), "DeviceGraph: cpu cannot record work, expected a GPU");
}

TEST(CudaGraph, ReplaysReadWhatLiesInTheirInputs) {
  SKIP_WITHOUT_GPU();
  const Tensor x = Tensor::full({40, 30}, 1, DType::f32, Device::cuda());
  const Tensor w = random_tensor({30, 20}, 1, DType::f32).to(Device::cuda());
  const Tensor total = Tensor::zeros({40, 20}, DType::f32, Device::cuda());
  const auto work = [&] { ops::accumulate(total, ops::matmul(ops::affine(x, 2), w)); };
  work();
  total.fill(0);
  const DeviceGraph graph(Device::cuda(), work);
  EXPECT_EQ(total.to_vector<double>(), std::vector<double>(800, 0)) << "recording executes nothing";
  Tensor expected = Tensor::zeros({40, 20});
  for (const double value : {1.0, -3.0, 0.5}) {
    x.fill(value);
    graph.replay();
    ops::accumulate(expected, ops::matmul(Tensor::full({40, 30}, 2 * value), w.to(Device::cpu())));
    EXPECT_CLOSE(total.to(Device::cpu()), expected, 1e-6);
  }
}

TEST(CudaGraph, ReplaysDrawNewNumbersAndTheSameAsOrdinaryRuns) {
  SKIP_WITHOUT_GPU();
  const auto draw = [](bool recorded) {
    Generator generator(7, Device::cuda());
    const Tensor drawn = Tensor::zeros({1000}, DType::f32, Device::cuda());
    const auto work = [&] {
      drawn.copy_from(ops::uniform({1000}, generator.next(1000), 0, 1));
      generator.end_step();
    };
    std::optional<DeviceGraph> graph;
    std::vector<std::vector<double>> all;
    for (int step = 0; step < 5; ++step) {
      if (recorded && step == 2) graph.emplace(Device::cuda(), work);
      if (graph) graph->replay();
      else work();
      all.push_back(drawn.to_vector<double>());
    }
    return all;
  };
  const auto ordinary = draw(false), replayed = draw(true);
  EXPECT_EQ(ordinary, replayed);
  for (std::size_t step = 1; step < ordinary.size(); ++step) EXPECT_NE(ordinary[step], ordinary[step - 1]);
}

TEST(CudaGraph, OtherWorkNeverGetsItsMemory) {
  SKIP_WITHOUT_GPU();
  const auto reserved = [] { return memory_statistics(Device::cuda()).reserved_bytes; };
  const Tensor out = Tensor::zeros({1 << 20}, DType::f32, Device::cuda());
  Tensor table = Tensor::full({1 << 20}, 3, DType::f32, Device::cuda());  // read by the graph, dropped by its owner
  {
    const DeviceGraph graph(Device::cuda(), [&] {
      const Tensor inner = ops::affine(table, 2);  // freed when recorded
      out.copy_from(ops::affine(inner, 1, 1));
    });
    table = {};
    std::vector<Tensor> others;
    for (int i = 0; i < 8; ++i) others.push_back(Tensor::full({1 << 20}, -i, DType::f32, Device::cuda()));
    graph.replay();
    EXPECT_EQ(out.to_vector<double>(), std::vector<double>(1 << 20, 7));
    for (int i = 0; i < 8; ++i)
      EXPECT_EQ(others[static_cast<std::size_t>(i)].to_vector<double>(), std::vector<double>(1 << 20, -i));
    reset_peak_memory(Device::cuda());
    const std::size_t in_use = memory_statistics(Device::cuda()).current_bytes;
    graph.replay();
    EXPECT_EQ(memory_statistics(Device::cuda()).peak_bytes, in_use + (8u << 20)) << "the graph's two tensors count";
  }
  // With the graph gone, its memory serves anybody.
  const std::size_t before = reserved();
  std::vector<Tensor> more;
  for (int i = 0; i < 8; ++i) more.push_back(Tensor::zeros({1 << 20}, DType::f32, Device::cuda()));
  EXPECT_EQ(reserved(), before);
}

TEST(CudaGraph, TwoGraphsDoNotShareMemory) {
  SKIP_WITHOUT_GPU();
  Tensor results[2];
  std::optional<DeviceGraph> graphs[2];
  for (int i = 0; i < 2; ++i)
    graphs[i].emplace(Device::cuda(), [&, i] {
      const Tensor scratch = Tensor::full({1 << 20}, i + 1, DType::f32, Device::cuda());
      results[i] = ops::affine(scratch, 10);
    });
  for (const int i : {0, 1, 0}) graphs[i]->replay();
  for (int i = 0; i < 2; ++i) EXPECT_EQ(results[i].to_vector<double>(), std::vector<double>(1 << 20, 10 * (i + 1)));
  graphs[0].reset();
  const Tensor other = Tensor::full({1 << 20}, -1, DType::f32, Device::cuda());
  graphs[1]->replay();
  EXPECT_EQ(results[0].to_vector<double>(), std::vector<double>(1 << 20, 10));
  EXPECT_EQ(results[1].to_vector<double>(), std::vector<double>(1 << 20, 20));
  EXPECT_EQ(other.to_vector<double>(), std::vector<double>(1 << 20, -1));
}

TEST(CudaGraph, WorkThatCannotBeRecordedThrowsAndLeavesTheDeviceUsable) {
  SKIP_WITHOUT_GPU();
  const Tensor x = Tensor::ones({8}, DType::f32, Device::cuda()), host = Tensor::full({8}, 4);
  EXPECT_ERROR(DeviceGraph(Device::cuda(), [&] { x.copy_from(host); }),
               "copy: 32 bytes from cpu to cuda:0 cannot be part of a graph");
  EXPECT_ERROR(DeviceGraph(Device::cuda(), [&] { x.to_vector<float>(); }),
               "copy: 32 bytes from cuda:0 to cpu cannot be part of a graph");
  EXPECT_ERROR(DeviceGraph(Device::cuda(), [&] { fail("a mistake"); }), "a mistake");
  EXPECT_ERROR(DeviceGraph(Device::cuda(), [&] { DeviceGraph(Device::cuda(), [] {}); }), "already being recorded");
  x.copy_from(host);
  EXPECT_EQ(x.to_vector<double>(), std::vector<double>(8, 4));
  const DeviceGraph graph(Device::cuda(), [&] { x.fill(5); });
  graph.replay();
  EXPECT_EQ(x.to_vector<double>(), std::vector<double>(8, 5));
}

TEST(CudaUpload, TheHostMayChangeItsMemoryAtOnce) {
  SKIP_WITHOUT_GPU();
  // From one 64 KiB buffer to more than the largest; each copy is queued behind work that is still to run.
  for (const std::int64_t count : {3, 16384, 16385, 1 << 20, (1 << 22) + 1}) {
    const Tensor host = Tensor::zeros({count});
    std::vector<Tensor> copies;
    for (int i = 0; i < 6; ++i) {
      host.fill(i);
      copies.push_back(host.to(Device::cuda()));
    }
    for (int i = 0; i < 6; ++i) {
      const Tensor& copy = copies[static_cast<std::size_t>(i)];
      EXPECT_EQ(copy.slice(0, 0, 1).item<float>(), static_cast<float>(i));
      EXPECT_EQ(copy.slice(0, count - 1, count).item<float>(), static_cast<float>(i));
    }
  }
}

}  // namespace
}  // namespace switchyard
