#include "core/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <boost/json.hpp>
#include <cstring>
#include <set>

#include "core/error.h"
#include "core/io/atomic_file.h"
#include "core/io/safetensors_header.h"

namespace switchyard {
namespace {

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own implementation

struct TypeName {
  std::string_view name;
  DType dtype;
};
constexpr TypeName kTypeNames[] = {{"F32", DType::f32}, {"F64", DType::f64}, {"BF16", DType::bf16},
                                   {"I32", DType::i32}, {"I64", DType::i64}, {"BOOL", DType::boolean}};
constexpr std::string_view kHalf = "F16";

std::string_view type_name(DType dtype) {
  for (const auto& type : kTypeNames)
    if (type.dtype == dtype) return type.name;
  fail("save_safetensors: no name for dtype ", dtype);
}

/// The value of IEEE 754's 16-bit format (sign, 5 bits of exponent, 10 of fraction) in `bits`.
float value_of_half(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
  if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * static_cast<float>(fraction);
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + (127 - 15);  // 255: infinite or NaN
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

Tensor load_half(const std::byte* data, const Shape& shape) {
  Tensor out = Tensor::empty(shape, DType::f32, Device::cpu());
  float* to = out.data<float>();
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, data + 2 * i, sizeof bits);  // may lie unaligned
    to[i] = value_of_half(bits);
  }
  return out;
}

/// Byte offsets of each tensor's data. Wider types come first, so that every tensor is aligned to its type.
std::vector<std::uint64_t> place_data(const std::vector<std::pair<std::string, Tensor>>& tensors,
                                      std::vector<std::size_t>& order) {
  order.resize(tensors.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return size_of(tensors[a].second.dtype()) > size_of(tensors[b].second.dtype());
  });
  std::vector<std::uint64_t> begins(tensors.size());
  std::uint64_t position = 0;
  for (const std::size_t i : order) {
    begins[i] = position;
    position += tensors[i].second.bytes();
  }
  return begins;
}

std::string header_json(const std::vector<std::pair<std::string, Tensor>>& tensors,
                        const std::vector<std::uint64_t>& begins, const std::map<std::string, std::string>& metadata) {
  boost::json::object header;
  if (!metadata.empty()) {
    boost::json::object& target = header["__metadata__"].emplace_object();
    for (const auto& [key, value] : metadata) target[key] = value;
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    boost::json::object& entry = header[name].emplace_object();
    const std::string_view type = type_name(tensor.dtype());
    entry["dtype"].emplace_string().assign(type.data(), type.size());
    boost::json::array& shape = entry["shape"].emplace_array();
    for (const std::int64_t size : tensor.shape()) shape.emplace_back(size);
    entry["data_offsets"] = {begins[i], begins[i] + tensor.bytes()};
  }
  std::string json = boost::json::serialize(header);
  json.append((8 - json.size() % 8) % 8, ' ');  // the data start 8-byte aligned
  return json;
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile out;
  out.file_ = MappedFile::open(path);
  const std::string source = "safetensors: " + path.string() + ": ";
  const std::size_t size = out.file_->size();
  check(size >= kLengthBytes, source, "the file has ", size, " bytes, too few for a header");
  std::uint64_t length = 0;
  std::memcpy(&length, out.file_->data(), kLengthBytes);
  check(length <= kMaxHeaderBytes, source, "header length ", length, " is above the limit of ", kMaxHeaderBytes);
  check(length <= size - kLengthBytes, source, "header length ", length, " reaches past the file's ", size,
        " bytes (is the file truncated?)");
  out.data_begin_ = kLengthBytes + static_cast<std::size_t>(length);
  const auto* json = reinterpret_cast<const char*>(out.file_->data()) + kLengthBytes;
  out.contents_ = std::make_shared<Contents>(
      parse_safetensors_header({json, static_cast<std::size_t>(length)}, size - out.data_begin_, source));
  return out;
}

const SafetensorsFile::Entry& SafetensorsFile::find(const char* op, std::string_view name) const {
  const auto at = contents_->entries.find(name);
  check(at != contents_->entries.end(), op, ": ", path().string(), " has no tensor '", name, "'");
  return at->second;
}

bool SafetensorsFile::contains(std::string_view name) const {
  return contents_->entries.find(name) != contents_->entries.end();
}

const Shape& SafetensorsFile::shape(std::string_view name) const { return find("shape", name).shape; }

DType SafetensorsFile::dtype(std::string_view name) const {
  const Entry& entry = find("dtype", name);
  if (entry.type == kHalf) return DType::f32;
  for (const auto& type : kTypeNames)
    if (type.name == entry.type) return type.dtype;
  fail("safetensors: ", path().string(), ": tensor '", name, "': type ", entry.type,
       " is not supported, expected F32, F64, F16, BF16, I32, I64 or BOOL");
}

Tensor SafetensorsFile::load(std::string_view name) const {
  const Entry& entry = find("load", name);
  const DType type = dtype(name);
  std::byte* data = file_->data() + data_begin_ + entry.begin;
  if (entry.type == kHalf) return load_half(data, entry.shape);
  const auto bytes = static_cast<std::size_t>(entry.end - entry.begin);
  if (type == DType::boolean) {
    const auto* bad = std::find_if(data, data + bytes, [](std::byte b) { return b > std::byte{1}; });
    check(bad == data + bytes, "safetensors: ", path().string(), ": tensor '", name, "': BOOL element ", bad - data,
          " is neither 0 nor 1");
  }
  if (bytes > 0 && reinterpret_cast<std::uintptr_t>(data) % size_of(type) == 0)
    return Tensor::view_of(Storage::borrow(data, bytes, file_), entry.shape, contiguous_strides(entry.shape), 0, type);
  Tensor copy = Tensor::empty(entry.shape, type, Device::cpu());
  if (bytes > 0) std::memcpy(copy.raw(), data, bytes);
  return copy;
}

std::uint64_t save_safetensors(const std::filesystem::path& path,
                               const std::vector<std::pair<std::string, Tensor>>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  std::set<std::string_view> names = {"__metadata__"};
  for (const auto& [name, tensor] : tensors) {
    check(names.insert(name).second, "save_safetensors: ", path.string(), ": the name '", name,
          name == "__metadata__" ? "' is reserved" : "' is given twice");
    check(tensor.defined(), "save_safetensors: ", path.string(), ": tensor '", name, "' is undefined");
  }
  std::vector<std::size_t> order;
  const std::string json = header_json(tensors, place_data(tensors, order), metadata);
  const std::uint64_t length = json.size();
  check(length <= kMaxHeaderBytes, "save_safetensors: ", path.string(), ": the header would have ", length,
        " bytes, above the limit of ", kMaxHeaderBytes);
  AtomicFile file(path);
  file.append(&length, kLengthBytes);
  file.append(json);
  for (const std::size_t i : order) {
    const Tensor dense = tensors[i].second.to(Device::cpu()).contiguous();
    if (dense.bytes() > 0) file.append(dense.raw(), dense.bytes());
  }
  file.commit();
  return file.checksum();
}

}  // namespace switchyard
