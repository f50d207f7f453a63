#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <string_view>

namespace switchyard::train {

/// Parses one JSON document. Throws Error `<source>: line 3, column 5: ...` for malformed text (NaN included), for a
/// key given twice in one object, and for nesting deeper than 32.
boost::json::value parse_json(std::string_view text, const std::string& source);

/// JSON with one key per line and two spaces of indent; lists of plain values stay on one line.
std::string pretty_json(const boost::json::value& value);

}  // namespace switchyard::train
