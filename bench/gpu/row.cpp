#include "bench/gpu/row.h"

#include "core/ops/matmul.h"
#include "core/ops/random.h"

namespace switchyard::bench {
namespace {

Tensor uniform(const Shape& shape, double low, double high, DType dtype) {
  static Generator generator(1, Device::cuda());
  return ops::uniform(shape, generator.next(shape.numel()), low, high, dtype);
}

}  // namespace

Tensor random_tensor(const Shape& shape, DType dtype) { return uniform(shape, -1, 1, dtype); }

Tensor random_ids(const Shape& shape, std::int64_t count) {
  return uniform(shape, 0, static_cast<double>(count), DType::f64).to(DType::i64);
}

double peak_mib() { return static_cast<double>(memory_statistics(Device::cuda()).peak_bytes) / (1 << 20); }

double dense_ms(std::int64_t n, const std::vector<std::pair<std::int64_t, std::int64_t>>& products, bool training) {
  double total = 0;
  for (const auto& [k, m] : products) {
    const Tensor x = random_tensor({n, k}), w = random_tensor({k, m}), dy = random_tensor({n, m});
    total += median_ms([&] {
      ops::matmul(x, w);
      if (!training) return;
      ops::matmul(dy, w.transpose(0, 1));
      ops::matmul(x.transpose(0, 1), dy);
    });
  }
  return total;
}

}  // namespace switchyard::bench
