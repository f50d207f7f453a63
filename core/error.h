#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace switchyard {

/// Every failure a caller can cause or meet ends in this one exception. The message is one line that
/// names the operation, the offending value and what was expected, for example
/// `matmul: inner sizes differ: [4, 8] x [7, 3]`. (A GPU that runs out of memory adds a table, see core/arena.h.)
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Builds the message from its parts (anything with operator<<) and throws Error.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

/// Throws Error with the message made of `parts` unless `ok`. The parts are formatted only on failure.
template <class... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    fail(parts...);
}

}  // namespace switchyard
