#include <iomanip>

#include "core/tensor.h"

namespace switchyard {
namespace {

constexpr std::int64_t kEdge = 3;       // values shown at each end of a long axis
constexpr std::int64_t kLongAxis = 10;  // an axis longer than this is abbreviated

void print_values(std::ostream& out, const Tensor& tensor) {
  if (tensor.rank() == 0) {
    if (is_floating(tensor.dtype())) out << std::setprecision(5) << tensor.item<double>();
    else out << tensor.item<std::int64_t>();
    return;
  }
  const std::int64_t size = tensor.size(0);
  out << '[';
  for (std::int64_t i = 0; i < size; ++i) {
    if (i > 0) out << ", ";
    if (size > kLongAxis && i == kEdge) {
      out << "..., ";
      i = size - kEdge;
    }
    print_values(out, tensor.select(0, i));
  }
  out << ']';
}

}  // namespace

std::string Tensor::to_string() const {
  if (!defined()) return "Tensor(undefined)";
  std::ostringstream out;
  out << "Tensor(" << dtype_ << ' ' << shape_;
  if (device().is_cuda()) out << ' ' << device();
  out << ' ';
  print_values(out, to(Device::cpu()));
  out << ')';
  return out.str();
}

std::ostream& operator<<(std::ostream& out, const Tensor& tensor) { return out << tensor.to_string(); }

}  // namespace switchyard
