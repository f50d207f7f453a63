#pragma once

#include <cstddef>
#include <string>

namespace switchyard {

/// Names the part of a model that runs while it is alive; scopes nest: "layers.3.attention".
class NameScope {
 public:
  explicit NameScope(const std::string& name);
  ~NameScope();
  NameScope(const NameScope&) = delete;
  NameScope& operator=(const NameScope&) = delete;

  /// The names of all live scopes of this thread, joined by dots; empty outside any.
  static const std::string& current();

 private:
  std::size_t outer_;  // length of the name without this scope
};

}  // namespace switchyard
