#include "core/device.h"

#include <charconv>

namespace switchyard {
namespace {

Device device_of_new_tensors;

}  // namespace

Device default_device() { return device_of_new_tensors; }

void set_default_device(Device device) { device_of_new_tensors = device; }

Device Device::parse(std::string_view text) {
  if (text == "cpu") return cpu();
  if (text == "cuda") return cuda();
  if (text.starts_with("cuda:")) {
    const std::string_view digits = text.substr(5);
    int index = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
    if (error == std::errc{} && end == digits.data() + digits.size() && index >= 0) return cuda(index);
  }
  fail("device: unknown '", text, "', expected cpu, cuda or cuda:<index>");
}

std::ostream& operator<<(std::ostream& out, const Device& device) {
  if (!device.is_cuda()) return out << "cpu";
  return out << "cuda:" << device.index;
}

}  // namespace switchyard
