#include "core/name_scope.h"

#include <utility>
#include <vector>

namespace switchyard {
namespace {

thread_local std::vector<std::string> scopes;

}  // namespace

NameScope::NameScope(std::string name) { scopes.push_back(std::move(name)); }
NameScope::~NameScope() { scopes.pop_back(); }

std::string NameScope::current() {
  std::string joined;
  for (const std::string& name : scopes) joined += (joined.empty() ? "" : ".") + name;
  return joined;
}

}  // namespace switchyard
