#include "core/kernels/copy.h"

#include <array>

#include "core/cpu/convert.h"
#include "core/cpu/strided.h"

namespace switchyard::cpu {
namespace {

constexpr std::int64_t kGrain = 32768;

}  // namespace

void copy(const Tensor& from, const Tensor& to) {
  const ConvertFunction convert = convert_function(from.dtype(), to.dtype());
  const auto from_size = static_cast<std::int64_t>(size_of(from.dtype()));
  const auto to_size = static_cast<std::int64_t>(size_of(to.dtype()));
  const auto loop = strided_loop(to, from);
  const auto [to_stride, from_stride] = loop.inner_strides();
  std::byte* const to_bytes = to.raw();
  const std::byte* const from_bytes = from.raw();
  loop.parallel_walk(kGrain, [&, to_stride = to_stride, from_stride = from_stride](const auto& at, std::int64_t count) {
    convert(from_bytes + at[1] * from_size, from_stride, to_bytes + at[0] * to_size, to_stride, count);
  });
}

void fill(const Tensor& to, double value) {
  alignas(double) std::array<std::byte, sizeof(double)> element;
  convert_function(DType::f64, to.dtype())(reinterpret_cast<const std::byte*>(&value), 0, element.data(), 1, 1);
  const ConvertFunction spread = convert_function(to.dtype(), to.dtype());
  const auto size = static_cast<std::int64_t>(size_of(to.dtype()));
  const auto loop = strided_loop(to);
  std::byte* const bytes = to.raw();
  loop.parallel_walk(kGrain, [&](const auto& at, std::int64_t count) {
    spread(element.data(), 0, bytes + at[0] * size, loop.inner_strides()[0], count);
  });
}

}  // namespace switchyard::cpu
