#include "train/json_text.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_stack.hpp>
#include <charconv>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "core/error.h"

namespace switchyard::train {
namespace {

namespace json = boost::json;

constexpr std::size_t kDeepestNesting = 32;

/// Builds the value like Boost's own parser, which would keep the last of two equal keys and say nothing, and which
/// (before Boost 1.84) may miss the nearest double by one unit in the last place.
class ValueBuilder {
 public:
  static constexpr std::size_t max_object_size = std::size_t(-1);
  static constexpr std::size_t max_array_size = std::size_t(-1);
  static constexpr std::size_t max_key_size = std::size_t(-1);
  static constexpr std::size_t max_string_size = std::size_t(-1);
  using Code = json::error_code;

  ValueBuilder() { values_.reset(); }
  json::value release() { return values_.release(); }
  bool found_duplicate() const { return found_duplicate_; }
  const std::string& last_key() const { return key_; }

  bool on_document_begin(Code&) { return true; }
  bool on_document_end(Code&) { return true; }
  bool on_object_begin(Code&) { return keys_.emplace_back(), true; }
  bool on_object_end(std::size_t size, Code&) { return keys_.pop_back(), values_.push_object(size), true; }
  bool on_array_begin(Code&) { return true; }
  bool on_array_end(std::size_t size, Code&) { return values_.push_array(size), true; }
  bool on_key_part(json::string_view part, std::size_t, Code&) { return text_.append(part.data(), part.size()), true; }
  bool on_key(json::string_view part, std::size_t, Code& code) {
    text_.append(part.data(), part.size());
    key_ = std::exchange(text_, {});
    values_.push_key(key_);
    found_duplicate_ = !keys_.back().insert(key_).second;
    if (found_duplicate_) code = json::make_error_code(json::error::exception);
    return !found_duplicate_;
  }
  bool on_string_part(json::string_view part, std::size_t, Code&) {
    return text_.append(part.data(), part.size()), true;
  }
  bool on_string(json::string_view part, std::size_t, Code&) {
    text_.append(part.data(), part.size());
    return values_.push_string(std::exchange(text_, {})), true;
  }
  bool on_number_part(json::string_view part, Code&) { return text_.append(part.data(), part.size()), true; }
  bool on_int64(std::int64_t value, json::string_view, Code&) { return text_.clear(), values_.push_int64(value), true; }
  bool on_uint64(std::uint64_t value, json::string_view, Code&) {
    return text_.clear(), values_.push_uint64(value), true;
  }
  bool on_double(double value, json::string_view part, Code&) {
    text_.append(part.data(), part.size());
    double exact = value;
    if (std::from_chars(text_.data(), text_.data() + text_.size(), exact).ec != std::errc()) exact = value;
    return text_.clear(), values_.push_double(exact), true;
  }
  bool on_bool(bool value, Code&) { return values_.push_bool(value), true; }
  bool on_null(Code&) { return values_.push_null(), true; }
  bool on_comment_part(json::string_view, Code&) { return true; }
  bool on_comment(json::string_view, Code&) { return true; }

 private:
  json::value_stack values_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  std::string text_, key_;
  bool found_duplicate_ = false;
};

/// `line 3, column 5` of a byte offset.
std::string position_of(std::string_view text, std::size_t offset) {
  const std::string_view before = text.substr(0, std::min(offset, text.size()));
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
  return "line " + std::to_string(line) + ", column " + std::to_string(before.size() - line_start + 1);
}

[[noreturn]] void fail_at(std::string_view text, std::size_t offset, const std::string& source, json::error_code code) {
  std::string what;
  if (code == json::error::incomplete) what = "the JSON ends too early";
  else if (code == json::error::too_deep) what = "nested deeper than " + std::to_string(kDeepestNesting) + " levels";
  else if (code == json::error::extra_data) what = "more text after the end of the JSON";
  else {
    what = "not valid JSON";
    if (offset < text.size() && text[offset] > 0x20 && text[offset] < 0x7f)
      what += std::string(" at '") + text[offset] + '\'';
  }
  fail(source, ": ", position_of(text, offset), ": ", what);
}

void write_pretty(const json::value& value, std::size_t indent, std::string& out) {
  const auto line = [&](std::size_t depth) { out += '\n' + std::string(2 * depth, ' '); };
  if (const auto* object = value.if_object(); object && !object->empty()) {
    out += '{';
    const char* separator = "";
    for (const auto& item : *object) {
      out += separator;
      line(indent + 1);
      out += json::serialize(json::value(item.key())) + ": ";
      write_pretty(item.value(), indent + 1, out);
      separator = ",";
    }
    line(indent);
    out += '}';
  } else if (const auto* array = value.if_array(); array && !array->empty()) {
    const bool plain =
        std::none_of(array->begin(), array->end(), [](const json::value& item) { return item.is_structured(); });
    out += '[';
    for (std::size_t i = 0; i < array->size(); ++i) {
      if (i > 0) out += plain ? ", " : ",";
      if (!plain) line(indent + 1);
      write_pretty((*array)[i], indent + 1, out);
    }
    if (!plain) line(indent);
    out += ']';
  } else {
    out += json::serialize(value);
  }
}

}  // namespace

json::value parse_json(std::string_view text, const std::string& source) {
  json::parse_options options;
  options.max_depth = kDeepestNesting;
  json::error_code code;

  json::basic_parser<ValueBuilder> parser(options);
  const std::size_t parsed = parser.write_some(false, text.data(), text.size(), code);
  if (parser.handler().found_duplicate())
    fail(source, ": ", position_of(text, parsed), ": key ",
         json::serialize(json::value(json::string(parser.handler().last_key()))), " is given twice");
  if (code) fail_at(text, parsed, source, code);
  if (parsed < text.size()) fail_at(text, parsed, source, json::make_error_code(json::error::extra_data));
  return parser.handler().release();
}

std::string pretty_json(const json::value& value) {
  std::string out;
  write_pretty(value, 0, out);
  return out + '\n';
}

}  // namespace switchyard::train
