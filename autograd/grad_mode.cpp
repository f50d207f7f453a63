#include "autograd/grad_mode.h"

#include <utility>
#include <vector>

namespace switchyard {
namespace {

thread_local bool recording = true;
thread_local bool checking = false;
thread_local std::vector<std::string> scopes;

}  // namespace

bool grad_enabled() { return recording; }

NoGradGuard::NoGradGuard() : previous_(std::exchange(recording, false)) {}
NoGradGuard::~NoGradGuard() { recording = previous_; }

EnableGradGuard::EnableGradGuard() : previous_(std::exchange(recording, true)) {}
EnableGradGuard::~EnableGradGuard() { recording = previous_; }

AnomalyGuard::AnomalyGuard() : previous_(std::exchange(checking, true)) {}
AnomalyGuard::~AnomalyGuard() { checking = previous_; }
bool anomaly_enabled() { return checking; }

NameScope::NameScope(std::string name) { scopes.push_back(std::move(name)); }
NameScope::~NameScope() { scopes.pop_back(); }

std::string NameScope::current() {
  std::string joined;
  for (const std::string& name : scopes) joined += (joined.empty() ? "" : ".") + name;
  return joined;
}

}  // namespace switchyard
