#include "core/io/safetensors_header.h"

#include <algorithm>
#include <array>
#include <boost/json/basic_parser_impl.hpp>
#include <limits>
#include <utility>

#include "core/error.h"

namespace switchyard {
namespace {

constexpr std::size_t kMaxRank = 32;
constexpr std::string_view kMetadata = "__metadata__";

/// A name from the file, safe to print on one line.
std::string printable(std::string_view text) {
  constexpr std::size_t kMaxShown = 80;
  std::string out = "'";
  for (const char c : text.substr(0, kMaxShown)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return out + (text.size() > kMaxShown ? "...'" : "'");
}

/// Receives the events of the JSON parser and accepts exactly the schema
/// {"__metadata__": {string: string}, name: {"dtype": string, "shape": [n...], "data_offsets": [begin, end]}, ...}.
/// Working on events, not on a parsed tree, keeps duplicate keys visible and nothing unexpected is ever stored.
class HeaderHandler {
 public:
  static constexpr std::size_t max_object_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_array_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_key_size = std::numeric_limits<std::size_t>::max();
  static constexpr std::size_t max_string_size = std::numeric_limits<std::size_t>::max();
  using error_code = boost::json::error_code;
  using text = boost::json::string_view;

  explicit HeaderHandler(std::string source) : source_(std::move(source)) {}

  SafetensorsFile::Contents take() { return std::move(contents_); }

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }

  bool on_object_begin(error_code&) {
    switch (place_) {
      case Place::start: place_ = Place::top; break;
      case Place::top: begin_member(); break;
      default: unexpected("an object");
    }
    return true;
  }

  bool on_object_end(std::size_t, error_code&) {
    switch (place_) {
      case Place::tensor: end_tensor(); [[fallthrough]];
      case Place::metadata: place_ = Place::top; break;
      default: place_ = Place::start;
    }
    return true;
  }

  bool on_array_begin(error_code&) {
    if (place_ != Place::tensor || (key_ != "shape" && key_ != "data_offsets")) unexpected("an array");
    numbers_.clear();
    place_ = Place::numbers;
    return true;
  }

  bool on_array_end(std::size_t, error_code&) {
    if (key_ == "shape") {
      entry_.shape.assign(numbers_.begin(), numbers_.end());
    } else {
      check(numbers_.size() == 2, where(), "data_offsets: expected [begin, end], got ", numbers_.size(), " numbers");
      entry_.begin = static_cast<std::uint64_t>(numbers_[0]);
      entry_.end = static_cast<std::uint64_t>(numbers_[1]);
    }
    place_ = Place::tensor;
    return true;
  }

  bool on_key_part(text part, std::size_t, error_code&) { return collect(part); }
  bool on_key(text part, std::size_t, error_code&) {
    collect(part);
    std::string key = std::exchange(text_, {});
    if (place_ == Place::top) begin_name(std::move(key));
    else if (place_ == Place::tensor) begin_field(std::move(key));
    else key_ = std::move(key);
    return true;
  }

  bool on_string_part(text part, std::size_t, error_code&) { return collect(part); }
  bool on_string(text part, std::size_t, error_code&) {
    collect(part);
    std::string value = std::exchange(text_, {});
    if (place_ == Place::metadata) {
      check(contents_.metadata.emplace(key_, std::move(value)).second, where(), "duplicate key ", printable(key_));
    } else if (place_ == Place::tensor && key_ == "dtype") {
      check(bits_of_safetensors_type(value) != 0, where(), "unknown dtype ", printable(value));
      entry_.type = std::move(value);
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool on_number_part(text, error_code&) { return true; }
  bool on_int64(std::int64_t value, text, error_code&) {
    if (place_ != Place::numbers) unexpected("a number");
    check(value >= 0, where(), key_, ": negative number ", value);
    check(numbers_.size() < kMaxRank, where(), key_, ": more than ", kMaxRank, " numbers");
    numbers_.push_back(value);
    return true;
  }
  bool on_uint64(std::uint64_t value, text, error_code&) {
    if (place_ != Place::numbers) unexpected("a number");
    fail(where(), key_, ": number too large: ", value);
  }
  bool on_double(double value, text, error_code&) {
    if (place_ != Place::numbers) unexpected("a number");
    fail(where(), key_, ": expected whole numbers below 2^63, got ", value);
  }
  bool on_bool(bool, error_code&) { unexpected("a boolean"); }
  bool on_null(error_code&) { unexpected("null"); }
  bool on_comment_part(text, error_code&) { return true; }
  bool on_comment(text, error_code&) { return true; }

 private:
  enum class Place { start, top, tensor, metadata, numbers };

  bool collect(text part) {
    text_.append(part.data(), part.size());
    return true;
  }

  void begin_name(std::string name) {
    name_ = std::move(name);
    const bool is_new = name_ == kMetadata ? !std::exchange(has_metadata_, true) : !contents_.entries.contains(name_);
    check(is_new, source_, "duplicate name ", printable(name_));
  }

  void begin_member() {
    place_ = name_ == kMetadata ? Place::metadata : Place::tensor;
    entry_ = {};
    fields_seen_ = {};
  }

  void begin_field(std::string key) {
    key_ = std::move(key);
    const auto* field = std::find(kFields.begin(), kFields.end(), key_);
    check(field != kFields.end(), where(), "unknown key ", printable(key_), ", expected dtype, shape, data_offsets");
    bool& seen = fields_seen_[static_cast<std::size_t>(field - kFields.begin())];
    check(!std::exchange(seen, true), where(), "duplicate key ", printable(key_));
  }

  void end_tensor() {
    for (std::size_t i = 0; i < kFields.size(); ++i) check(fields_seen_[i], where(), "no ", kFields[i], " given");
    contents_.names.push_back(name_);
    contents_.entries.emplace(name_, std::move(entry_));
  }

  /// "<source>tensor 'name': ", the start of a message about the member being read.
  std::string where() const {
    if (place_ == Place::metadata || name_ == kMetadata) return source_ + "__metadata__: ";
    return source_ + "tensor " + printable(name_) + ": ";
  }

  [[noreturn]] void unexpected(const char* got) const {
    switch (place_) {
      case Place::start: fail(source_, "the header must be a JSON object, got ", got);
      case Place::top: fail(where(), "expected an object, got ", got);
      case Place::metadata: fail(where(), printable(key_), ": expected a string, got ", got);
      case Place::numbers: fail(where(), key_, ": expected whole numbers, got ", got);
      default: fail(where(), key_, ": expected ", key_ == "dtype" ? "a string" : "an array", ", got ", got);
    }
  }

  static constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};

  std::string source_;
  SafetensorsFile::Contents contents_;
  Place place_ = Place::start;
  std::string text_, name_, key_;
  SafetensorsFile::Entry entry_;
  std::array<bool, 3> fields_seen_ = {};
  bool has_metadata_ = false;
  std::vector<std::int64_t> numbers_;
};

/// Bytes that the shape and the type call for. Sizes of zero do not hide an overflow of the others, so that
/// strides can be computed safely.
std::uint64_t bytes_of(const SafetensorsFile::Entry& entry, const std::string& where) {
  std::int64_t bits = static_cast<std::int64_t>(bits_of_safetensors_type(entry.type));
  bool is_empty = false;
  for (const std::int64_t size : entry.shape) {
    is_empty |= size == 0;
    check(!__builtin_mul_overflow(bits, std::max<std::int64_t>(size, 1), &bits), where, "shape ", entry.shape,
          " overflows");
  }
  if (is_empty) return 0;
  check(bits % 8 == 0, where, "shape ", entry.shape, " of ", entry.type, " does not fill whole bytes");
  return static_cast<std::uint64_t>(bits) / 8;
}

/// The tensors must cover the data exactly: in range, without overlap, without holes.
void check_layout(const SafetensorsFile::Contents& contents, std::uint64_t data_bytes, const std::string& source) {
  using Item = std::pair<const std::string, SafetensorsFile::Entry>;
  std::vector<const Item*> order;
  order.reserve(contents.entries.size());
  for (const Item& item : contents.entries) {
    const auto& [name, entry] = item;
    const std::string where = source + "tensor " + printable(name) + ": ";
    check(entry.begin <= entry.end, where, "data_offsets [", entry.begin, ", ", entry.end, "] run backwards");
    check(entry.end <= data_bytes, where, "data_offsets [", entry.begin, ", ", entry.end, "] reach past the ",
          data_bytes, " bytes of data (is the file truncated?)");
    const std::uint64_t wanted = bytes_of(entry, where);
    check(entry.end - entry.begin == wanted, where, entry.type, " ", entry.shape, " needs ", wanted,
          " bytes, data_offsets give ", entry.end - entry.begin);
    order.push_back(&item);
  }
  std::sort(order.begin(), order.end(), [](const Item* a, const Item* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  std::uint64_t position = 0;
  for (const Item* item : order) {
    const auto& [name, entry] = *item;
    check(entry.begin >= position, source, "tensor ", printable(name), ": its data overlap another tensor's at byte ",
          entry.begin);
    check(entry.begin <= position, source, "tensor ", printable(name), ": a hole of ", entry.begin - position,
          " bytes lies before its data");
    position = entry.end;
  }
  check(position == data_bytes, source, data_bytes - position, " bytes behind the last tensor belong to none");
}

}  // namespace

std::uint64_t bits_of_safetensors_type(std::string_view type) {
  static constexpr std::pair<std::string_view, std::uint64_t> kTypes[] = {
      {"F32", 32},    {"F64", 64},    {"BF16", 16},   {"I32", 32}, {"I64", 64},    {"BOOL", 8},   {"F16", 16},
      {"U8", 8},      {"I8", 8},      {"U16", 16},    {"I16", 16}, {"U32", 32},    {"U64", 64},   {"C64", 64},
      {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6}};
  for (const auto& [name, bits] : kTypes)
    if (name == type) return bits;
  return 0;
}

SafetensorsFile::Contents parse_safetensors_header(std::string_view json, std::uint64_t data_bytes,
                                                   const std::string& source) {
  check(json.starts_with('{'), source, "the header must start with '{'");
  boost::json::basic_parser<HeaderHandler> parser(boost::json::parse_options(), source);
  boost::json::error_code error;
  const std::size_t used = parser.write_some(false, json.data(), json.size(), error);
  check(!error, source, "the header is not valid JSON at byte ", used, ": ", error.message());
  const auto rest = json.find_first_not_of(" \t\r\n", used);
  check(rest == std::string_view::npos, source, "the header goes on behind the end of its JSON object");
  SafetensorsFile::Contents contents = parser.handler().take();
  check_layout(contents, data_bytes, source);
  return contents;
}

}  // namespace switchyard
