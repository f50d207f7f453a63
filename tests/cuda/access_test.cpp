// How many elements threads move at once: a decision of the host, which is tested without a GPU.

#include "cuda/access.h"

#include <gtest/gtest.h>

#include "core/dtype.h"

namespace switchyard {
namespace {

/// Whether each of some rows of x can be cut into pieces of n elements that begin at multiples of their size.
template <class T>
bool can_be_cut(const Tensor& x, std::int64_t width, std::int64_t n) {
  const auto begin = reinterpret_cast<std::uintptr_t>(x.raw()), size = static_cast<std::uintptr_t>(sizeof(T));
  for (std::uintptr_t row = 0; row < 4; ++row)
    if ((begin + row * static_cast<std::uintptr_t>(width) * size) % (static_cast<std::uintptr_t>(n) * size) != 0)
      return false;
  return width % n == 0;
}

template <class T>
void expect_widest() {
  const Tensor memory = Tensor::zeros({64}, dtype_of<T>(), Device::cpu());
  for (std::int64_t first = 0; first < 9; ++first)
    for (std::int64_t width = 1; width < 40; ++width) {
      const Tensor x = memory.slice(0, first, 64), other;
      std::int64_t expected = 1;
      for (const std::int64_t bytes : {4, 8, 16})
        if (const std::int64_t n = bytes / static_cast<std::int64_t>(sizeof(T)); n > 1 && can_be_cut<T>(x, width, n))
          expected = n;
      int calls = 0;
      cuda::with_access<T, 16, 8, 4>(width, {&memory, &x, &other}, [&](auto access) {
        EXPECT_EQ(access.value, expected) << "width " << width << " from element " << first;
        ++calls;
      });
      EXPECT_EQ(calls, 1);
      cuda::with_access<T, 16>(width, {&x}, [&](auto access) {
        const bool wide = expected * static_cast<std::int64_t>(sizeof(T)) == 16;
        EXPECT_EQ(access.value, wide ? expected : 1) << "width " << width << " from element " << first;
      });
    }
}

TEST(CudaAccess, IsTheWidestThatRowsAllow) {
  expect_widest<double>();
  expect_widest<float>();
  expect_widest<bfloat16>();
}

}  // namespace
}  // namespace switchyard
