#include "core/name_scope.h"

namespace switchyard {
namespace {

thread_local std::string joined;

}  // namespace

NameScope::NameScope(const std::string& name) : outer_(joined.size()) {
  if (!joined.empty()) joined += '.';
  joined += name;
}
NameScope::~NameScope() { joined.resize(outer_); }

const std::string& NameScope::current() { return joined; }

}  // namespace switchyard
