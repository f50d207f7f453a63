#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "core/io/checksum.h"
#include "core/io/safetensors.h"
#include "tests/support/temporary_folder.h"

namespace switchyard {
namespace {

using testing::read_bytes;
using testing::TemporaryFolder;
using testing::write_bytes;

std::string bytes_of(const Tensor& tensor) {
  const Tensor dense = tensor.contiguous();
  return dense.bytes() == 0 ? "" : std::string(reinterpret_cast<const char*>(dense.raw()), dense.bytes());
}

/// A file with this JSON header and these data.
std::string file_bytes(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

TEST(Safetensors, RoundTripOfEveryDtype) {
  TemporaryFolder folder;
  const std::vector<std::pair<std::string, Tensor>> tensors = {
      {"flags", Tensor::from<std::int32_t>({0, 1, 1}, {3}).to(DType::boolean)},
      {"b", Tensor::from<float>({1.5f, -2.0f, 3.25f}, {3, 1}).to(DType::bf16)},
      {"f", Tensor::from<float>({1, 2, 3, 4, 5, 6}, {2, 3})},
      {"d", Tensor::from<double>({0.1, 0.2}, {2})},
      {"i", Tensor::from<std::int32_t>({-1, 7}, {2})},
      {"l", Tensor::from<std::int64_t>({-1, std::int64_t{1} << 60}, {1, 2})},
      {"scalar", Tensor::scalar(2.5)},
      {"none", Tensor::empty({0, 4}, DType::f64)},
      {"", Tensor::scalar(1)},
      {"odd \"name\"\n\xC3\xA9", Tensor::scalar(3)},
  };
  const std::map<std::string, std::string> metadata = {{"step", "12"}, {"note", "line\nbreak \xE2\x82\xAC"}, {"", ""}};
  const auto path = folder / "all.safetensors";
  const std::uint64_t sum = save_safetensors(path, tensors, metadata);
  EXPECT_EQ(sum, checksum_of_file(path));

  const auto file = SafetensorsFile::open(path);
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.names().size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor] = tensors[i];
    EXPECT_EQ(file.names()[i], name);
    EXPECT_TRUE(file.contains(name));
    EXPECT_EQ(file.shape(name), tensor.shape());
    EXPECT_EQ(file.dtype(name), tensor.dtype());
    const Tensor loaded = file.load(name);
    EXPECT_EQ(loaded.shape(), tensor.shape());
    EXPECT_EQ(loaded.dtype(), tensor.dtype());
    EXPECT_EQ(bytes_of(loaded), bytes_of(tensor)) << name;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(loaded.bytes() ? loaded.raw() : nullptr) % size_of(loaded.dtype()), 0u);
  }
  EXPECT_FALSE(file.contains("g"));
}

TEST(Safetensors, RandomRoundTrips) {
  TemporaryFolder folder;
  std::mt19937 random(5);
  const DType dtypes[] = {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean};
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<std::pair<std::string, Tensor>> tensors;
    const std::size_t count = random() % 8;
    for (std::size_t i = 0; i < count; ++i) {
      Shape shape;
      for (std::size_t axis = random() % 5; axis > 0; --axis) shape.push_back(random() % 5);
      const Tensor tensor = Tensor::empty(shape, dtypes[random() % 6]);
      for (std::size_t byte = 0; byte < tensor.bytes(); ++byte)
        tensor.raw()[byte] = static_cast<std::byte>(tensor.dtype() == DType::boolean ? random() % 2 : random() % 256);
      tensors.emplace_back(std::string("t").append(std::to_string(i * 7919 % 31)), tensor);
    }
    save_safetensors(folder / "f", tensors);
    const auto file = SafetensorsFile::open(folder / "f");
    ASSERT_EQ(file.names().size(), count);
    for (const auto& [name, tensor] : tensors) {
      ASSERT_EQ(file.shape(name), tensor.shape());
      ASSERT_EQ(bytes_of(file.load(name)), bytes_of(tensor));
    }
  }
}

TEST(Safetensors, StridedTensorsAreWrittenDense) {
  TemporaryFolder folder;
  const Tensor tensor = Tensor::from<float>({1, 2, 3, 4, 5, 6}, {2, 3});
  save_safetensors(folder / "f", {{"t", tensor.transpose(0, 1)}, {"c", tensor.slice(1, 0, 3, 2)}});
  const auto file = SafetensorsFile::open(folder / "f");
  EXPECT_EQ(file.load("t").to_vector<float>(), (std::vector<float>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(file.load("c").to_vector<float>(), (std::vector<float>{1, 3, 4, 6}));
}

// A file as the format's own Python package writes it (sorted by type and name, header filled up with spaces).
TEST(Safetensors, ReadsTheFormatByHand) {
  TemporaryFolder folder;
  const float values[] = {1.0f, -2.0f};
  const std::int64_t whole[] = {7};
  std::string data(reinterpret_cast<const char*>(whole), sizeof whole);
  data.append(reinterpret_cast<const char*>(values), sizeof values);
  write_bytes(folder / "f",
              file_bytes(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                         R"("a":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]}}    )",
                         data));
  const auto file = SafetensorsFile::open(folder / "f");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.names(), (std::vector<std::string>{"b", "a"}));
  EXPECT_EQ(file.load("b").item<std::int64_t>(), 7);
  EXPECT_EQ(file.load("a").to_vector<float>(), (std::vector<float>{1, -2}));
}

TEST(Safetensors, UnalignedDataAreCopied) {
  TemporaryFolder folder;
  const double value = 0.1;
  for (std::size_t padding = 0; padding < 8; ++padding) {
    std::string data(reinterpret_cast<const char*>(&value), sizeof value);
    write_bytes(
        folder / "f",
        file_bytes(R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})" + std::string(padding, ' '), data));
    EXPECT_EQ(SafetensorsFile::open(folder / "f").load("a").item<double>(), 0.1);
  }
}

TEST(Safetensors, LoadedTensorsOutliveTheFileObjectAndNeverChangeTheFile) {
  TemporaryFolder folder;
  save_safetensors(folder / "f", {{"a", Tensor::ones({1000})}});
  const std::string before = read_bytes(folder / "f");
  const Tensor tensor = SafetensorsFile::open(folder / "f").load("a");
  std::filesystem::remove(folder / "f");
  write_bytes(folder / "f", before);
  EXPECT_EQ(tensor.to_vector<float>(), std::vector<float>(1000, 1.0f));
  const Tensor other = SafetensorsFile::open(folder / "f").load("a");
  other.data<float>()[0] = 5.0f;
  EXPECT_EQ(read_bytes(folder / "f"), before);
}

/// What the IEEE 754 standard says of its 16-bit format.
double half_by_definition(int bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  const double size = exponent == 0   ? std::ldexp(fraction, -24)
                      : exponent < 31 ? std::ldexp(1024 + fraction, exponent - 25)
                      : fraction == 0 ? std::numeric_limits<double>::infinity()
                                      : std::numeric_limits<double>::quiet_NaN();
  return bits & 0x8000 ? -size : size;
}

TEST(Safetensors, EveryHalfBecomesTheFloatOfItsValue) {
  TemporaryFolder folder;
  std::string data;
  for (int bits = 0; bits < 1 << 16; ++bits) {
    data += static_cast<char>(bits & 255);
    data += static_cast<char>(bits >> 8);
  }
  for (const std::string padding : {"", " "}) {  // that moves the data to an odd address
    write_bytes(folder / "f",
                file_bytes(R"({"a":{"dtype":"F16","shape":[256,256],"data_offsets":[0,131072]}})" + padding, data));
    const auto file = SafetensorsFile::open(folder / "f");
    EXPECT_EQ(file.dtype("a"), DType::f32);
    const Tensor tensor = file.load("a");
    EXPECT_EQ(tensor.shape(), (Shape{256, 256}));
    const auto values = tensor.to_vector<float>();
    for (int bits = 0; bits < 1 << 16; ++bits) {
      const double value = values[static_cast<std::size_t>(bits)], expected = half_by_definition(bits);
      EXPECT_EQ(std::signbit(value), bits >= 0x8000) << bits;
      EXPECT_TRUE(value == expected || (std::isnan(value) && std::isnan(expected))) << bits << ": " << value;
    }
  }
}

TEST(Safetensors, UnsupportedTypesFailOnlyWhenLoaded) {
  TemporaryFolder folder;
  write_bytes(folder / "f", file_bytes(R"({"short":{"dtype":"I16","shape":[2],"data_offsets":[0,4]},)"
                                       R"("ok":{"dtype":"I32","shape":[1],"data_offsets":[4,8]},)"
                                       R"("u":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},)"
                                       R"("flag":{"dtype":"BOOL","shape":[1],"data_offsets":[11,12]}})",
                                       std::string("\1\2\3\4\5\0\0\0\6\7\10\2", 12)));
  const auto file = SafetensorsFile::open(folder / "f");
  EXPECT_EQ(file.load("ok").item<std::int32_t>(), 5);
  EXPECT_EQ(file.shape("short"), (Shape{2}));
  EXPECT_ERROR(file.load("short"), "tensor 'short': type I16 is not supported");
  EXPECT_ERROR(file.dtype("u"), "tensor 'u': type U8 is not supported");
  EXPECT_ERROR(file.load("flag"), "tensor 'flag': BOOL element 0 is neither 0 nor 1");
  EXPECT_ERROR(file.load("none"), "has no tensor 'none'");
}

TEST(Safetensors, SavingRefusesWhatItCouldNotRead) {
  TemporaryFolder folder;
  const Tensor one = Tensor::scalar(1);
  EXPECT_ERROR(save_safetensors(folder / "f", {{"a", one}, {"a", one}}), "the name 'a' is given twice");
  EXPECT_ERROR(save_safetensors(folder / "f", {{"__metadata__", one}}), "the name '__metadata__' is reserved");
  EXPECT_ERROR(save_safetensors(folder / "f", {{"a", Tensor()}}), "tensor 'a' is undefined");
  EXPECT_ERROR(save_safetensors(folder / "none/f", {{"a", one}}), "none/f: No such file");
  EXPECT_EQ(folder.entries(), 0u);
  save_safetensors(folder / "f", {});
  EXPECT_TRUE(SafetensorsFile::open(folder / "f").names().empty());
}

struct BadFile {
  std::string bytes;
  const char* message;
};

std::string with_length(std::uint64_t length, const std::string& rest) {
  return std::string(reinterpret_cast<const char*>(&length), 8) + rest;
}

/// A file whose one tensor 'a' has these fields and `data` bytes of data.
std::string tensor_file(const std::string& fields, std::size_t data) {
  return file_bytes("{\"a\":{" + fields + "}}", std::string(data, '\0'));
}

std::string repeated(const std::string& text, std::size_t times) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += text;
  return out;
}

std::vector<BadFile> bad_files() {
  const std::string good = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  const std::string first = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)";
  return {
      // length and truncation
      {"", "the file has 0 bytes, too few for a header"},
      {"1234567", "the file has 7 bytes, too few for a header"},
      {with_length(0, ""), "the header must start with '{'"},
      {with_length(100, "{}"), "header length 100 reaches past the file's 10 bytes (is the file truncated?)"},
      {with_length(~std::uint64_t{0}, "{}"), "header length 18446744073709551615 is above the limit"},
      {with_length(std::uint64_t{1} << 63, "{}"), "is above the limit of 100000000"},
      {with_length(100'000'001, "{}"), "header length 100000001 is above the limit"},
      {with_length(1, "{}"), "not valid JSON at byte 1: incomplete"},
      {tensor_file(good, 7), "data_offsets [0, 8] reach past the 7 bytes of data (is the file truncated?)"},
      {tensor_file(good, 9), "1 bytes behind the last tensor belong to none"},
      {"PK\3\4 this is not a safetensors file", "is above the limit"},
      // JSON
      {file_bytes("[]", ""), "the header must start with '{'"},
      {file_bytes(" {}", ""), "the header must start with '{'"},
      {file_bytes("{} x", ""), "the header goes on behind the end of its JSON object"},
      {file_bytes("{}{}", ""), "the header goes on behind the end of its JSON object"},
      {file_bytes("{\"a\":}", ""), "not valid JSON at byte 5: syntax error"},
      {file_bytes("{\"a\":{\"dtype\":\"F32\",}}", ""), "not valid JSON"},
      {file_bytes("{\"\xFF\":{}}", ""), "not valid JSON"},
      {file_bytes("{\"a\xC3\":{}}", ""), "not valid JSON"},
      {file_bytes("{\"\\ud800\":{}}", ""), "not valid JSON"},
      {file_bytes(std::string("{\0}", 3), ""), "not valid JSON"},
      {file_bytes("{\"a\":" + repeated("[", 100'000), ""), "tensor 'a': expected an object, got an array"},
      {file_bytes(repeated("{\"a\":", 100'000), ""), "unknown key 'a'"},
      // structure
      {file_bytes(R"({"a":1})", ""), "tensor 'a': expected an object, got a number"},
      {file_bytes(R"({"a":null})", ""), "tensor 'a': expected an object, got null"},
      {file_bytes(R"({"a":{}})", ""), "tensor 'a': no dtype given"},
      {tensor_file(R"("dtype":"F32","data_offsets":[0,8])", 8), "tensor 'a': no shape given"},
      {tensor_file(R"("dtype":"F32","shape":[2])", 8), "tensor 'a': no data_offsets given"},
      {tensor_file(good + R"(,"extra":1)", 8), "tensor 'a': unknown key 'extra'"},
      {tensor_file(good + R"(,"shape":[2])", 8), "tensor 'a': duplicate key 'shape'"},
      {file_bytes(first + "\"a\":{" + good + "}}", std::string(8, '\0')), "duplicate name 'a'"},
      {file_bytes(first + "\"\\u0061\":{" + good + "}}", std::string(8, '\0')), "duplicate name 'a'"},
      {file_bytes(R"({"__metadata__":{"k":1}})", ""), "__metadata__: 'k': expected a string, got a number"},
      {file_bytes(R"({"__metadata__":{"k":{}}})", ""), "__metadata__: 'k': expected a string, got an object"},
      {file_bytes(R"({"__metadata__":{"k":"","k":""}})", ""), "__metadata__: duplicate key 'k'"},
      {file_bytes(R"({"__metadata__":{},"__metadata__":{}})", ""), "duplicate name '__metadata__'"},
      {file_bytes(R"({"__metadata__":"x"})", ""), "__metadata__: expected an object, got a string"},
      {file_bytes("{\"a\\nb\":1}", ""), "tensor 'a?b'"},
      // dtype
      {tensor_file(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])", 8), "unknown dtype 'F33'"},
      {tensor_file(R"("dtype":4,"shape":[2],"data_offsets":[0,8])", 8), "dtype: expected a string, got a number"},
      {tensor_file(R"("dtype":["F32"],"shape":[2],"data_offsets":[0,8])", 8), "dtype: expected a string, got an array"},
      {tensor_file(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])", 2), "does not fill whole bytes"},
      // shape
      {tensor_file(R"("dtype":"F32","shape":2,"data_offsets":[0,8])", 8), "shape: expected an array, got a number"},
      {tensor_file(R"("dtype":"F32","shape":"2","data_offsets":[0,8])", 8), "shape: expected an array, got a string"},
      {tensor_file(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])", 8), "shape: negative number -2"},
      {tensor_file(R"("dtype":"F32","shape":[-1,-2],"data_offsets":[0,8])", 8), "shape: negative number -1"},
      {tensor_file(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])", 8), "shape: expected whole numbers"},
      {tensor_file(R"("dtype":"F32","shape":[1e0],"data_offsets":[0,8])", 8), "shape: expected whole numbers"},
      {tensor_file(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])", 8), "shape: expected whole numbers, got a s"},
      {tensor_file(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])", 8),
       "shape: expected whole numbers, got an a"},
      {tensor_file(R"("dtype":"F32","shape":[true],"data_offsets":[0,8])", 8), "expected whole numbers, got a boolean"},
      {tensor_file(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])", 8),
       "F32 [3] needs 12 bytes, data_offsets give 8"},
      {tensor_file(R"("dtype":"F32","shape":[],"data_offsets":[0,8])", 8), "F32 [] needs 4 bytes, data_offsets give 8"},
      {tensor_file(R"("dtype":"F32","shape":[0],"data_offsets":[0,8])", 8), "F32 [0] needs 0 bytes, data_offsets give"},
      {tensor_file(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])", 0), "overflows"},
      {tensor_file(R"("dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0])", 0), "overflows"},
      {tensor_file(R"("dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0])", 0), "overflows"},
      {tensor_file(R"("dtype":"U8","shape":[9223372036854775807],"data_offsets":[0,0])", 0), "overflows"},
      {tensor_file(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,0])", 0), "number too large"},
      {tensor_file(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,0])", 0),
       "whole numbers below 2^63"},
      {tensor_file("\"dtype\":\"F32\",\"shape\":[1" + repeated(",1", 99) + "],\"data_offsets\":[0,4]", 4),
       "shape: more than 32 numbers"},
      // offsets
      {tensor_file(R"("dtype":"F32","shape":[2],"data_offsets":[0])", 8), "expected [begin, end], got 1 numbers"},
      {tensor_file(R"("dtype":"F32","shape":[2],"data_offsets":[])", 8), "expected [begin, end], got 0 numbers"},
      {tensor_file(R"("dtype":"F32","shape":[2],"data_offsets":[0,4,8])", 8), "expected [begin, end], got 3 numbers"},
      {tensor_file(R"("dtype":"F32","shape":[2],"data_offsets":{"0":8})", 8), "expected an array, got an object"},
      {tensor_file(R"("dtype":"F32","shape":[2],"data_offsets":[-8,0])", 8), "data_offsets: negative number -8"},
      {tensor_file(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])", 8), "data_offsets [8, 0] run backwards"},
      {tensor_file(R"("dtype":"F32","shape":[2],"data_offsets":[8,16])", 8),
       "data_offsets [8, 16] reach past the 8 bytes"},
      {tensor_file(R"("dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775807])", 8), "reach past the 8 bytes"},
      {tensor_file(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])", 8), "a hole of 4 bytes lies before its data"},
      {file_bytes(first + R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", std::string(12, '\0')),
       "tensor 'b': its data overlap another tensor's at byte 4"},
      {file_bytes(first + R"("b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", std::string(8, '\0')),
       "its data overlap another tensor's at byte 0"},
      {file_bytes(first + R"("b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})", std::string(8, '\0')),
       "tensor 'b': its data overlap another tensor's at byte 2"},
      {file_bytes(first + R"("b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", std::string(16, '\0')),
       "tensor 'b': a hole of 4 bytes lies before its data"},
  };
}

TEST(Safetensors, MalformedFilesAreNamedAndRefused) {
  TemporaryFolder folder;
  const auto path = folder / "bad.safetensors";
  for (const auto& [bytes, message] : bad_files()) {
    write_bytes(path, bytes);
    const std::size_t peak = (reset_peak_memory(Device::cpu()), memory_statistics(Device::cpu()).peak_bytes);
    EXPECT_ERROR(SafetensorsFile::open(path), message);
    EXPECT_ERROR(SafetensorsFile::open(path), "bad.safetensors: ");
    EXPECT_EQ(memory_statistics(Device::cpu()).peak_bytes, peak);
  }
  EXPECT_ERROR(SafetensorsFile::open(folder / "none"), "none: No such file or directory");
  EXPECT_ERROR(SafetensorsFile::open(folder.path()), "expected a regular file, got a folder");
  EXPECT_ERROR(SafetensorsFile::open("/dev/null"), "expected a regular file, got a special file");
}

// Whatever byte is damaged, opening and loading either works or throws; sanitizers watch for the rest.
TEST(Safetensors, DamagedBytesNeverCrash) {
  TemporaryFolder folder;
  const auto path = folder / "f";
  save_safetensors(path, {{"a", Tensor::ones({2, 3})}, {"b", Tensor::ones({5}, DType::bf16)}}, {{"k", "v"}});
  const std::string good = read_bytes(path);
  std::mt19937 random(3);
  for (int trial = 0; trial < 1000; ++trial) {
    std::string bytes = good;
    for (std::size_t i = random() % 3 + 1; i > 0; --i) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (trial % 4 == 0) bytes.resize(random() % bytes.size());
    write_bytes(path, bytes);
    try {
      const auto file = SafetensorsFile::open(path);
      for (const std::string& name : file.names()) file.load(name).to_vector<float>();
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace switchyard
