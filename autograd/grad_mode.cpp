#include "autograd/grad_mode.h"

#include <utility>

namespace switchyard {
namespace {

thread_local bool recording = true;
thread_local bool checking = false;

}  // namespace

bool grad_enabled() { return recording; }

NoGradGuard::NoGradGuard() : previous_(std::exchange(recording, false)) {}
NoGradGuard::~NoGradGuard() { recording = previous_; }

EnableGradGuard::EnableGradGuard() : previous_(std::exchange(recording, true)) {}
EnableGradGuard::~EnableGradGuard() { recording = previous_; }

AnomalyGuard::AnomalyGuard() : previous_(std::exchange(checking, true)) {}
AnomalyGuard::~AnomalyGuard() { checking = previous_; }
bool anomaly_enabled() { return checking; }

}  // namespace switchyard
